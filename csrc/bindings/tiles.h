// What Python calls Tiles: an image as squares of the vision encoder's size.
#pragma once

#include "bindings/arrays.h"
#include "prompt/anyres.h"

namespace atp::python {

struct Tiles {
    ImageArray pixels;  // [n][side][side][3]
    TileSet set;        // what they are of
};

}  // namespace atp::python
