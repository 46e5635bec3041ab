// Features of an image's tiles -> its rows in the prompt, packed as Hugging Face packs them. Pure arrays: no ggml.
//
// In:  features [1 + rows * cols][n_tokens][n_embd], the overview first, then the tiles line by line; the vector that
//      ends a line, [n_embd]; the image's size before it was prepared.
// Out: rows [n][n_embd] and a span for each grid: the overview as it is, then the tiles as one grid, without the part
//      that shows the canvas only, with the line's end as its last column.
// Source: transformers 5.23, pack_image_features of LLaVA-NeXT and LLaVA-OneVision (which shrinks large grids).
// Throws ImageError for sizes that Hugging Face cannot pack either.
#pragma once

#include <cstdint>
#include <vector>

#include "prompt/sequence.h"

namespace atp {

struct TileSet {
    int32_t rows = 0, cols = 0;     // of the tiles behind the overview; 0, 0: there are none
    int32_t height = 0, width = 0;  // of the image in pixels, before it was prepared
    int32_t max_tiles = 0;          // a grid of more image tokens than so many tiles have is shrunk; 0: never

    int32_t n_tiles() const { return 1 + rows * cols; }  // with the overview
};

// what becomes of the tiles' image tokens, [rows * side][cols * side] of them
struct TileLayout {
    int32_t top = 0, left = 0, rows = 0, cols = 0;  // the part that shows the image; 0 rows or columns: nothing does
    int32_t out_rows = 0, out_cols = 0;             // its size after shrinking
};

// side: image tokens in a line of a tile
TileLayout tile_layout(const TileSet & tiles, int32_t side);

struct PackedImage {
    std::vector<float> rows;  // [n][n_embd]
    std::vector<ImageSpan> spans;
};

// newline: [n_embd], or empty: lines have no end. An overview alone gets a single one behind it, as a grid of 1 x 1
PackedImage pack_tiles(const std::vector<float> & features, const TileSet & tiles, int32_t n_embd,
                       const std::vector<float> & newline);

}  // namespace atp
