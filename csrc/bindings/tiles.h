// What Python calls Tiles: an image as squares of the vision encoder's size.
#pragma once

#include "anyres.h"
#include "arrays.h"

namespace atp::python {

struct Tiles {
    ImageArray pixels;  // [n][side][side][3]
    TileSet set;        // what they are of
};

}  // namespace atp::python
