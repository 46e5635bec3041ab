// Rows and columns of the tokens of one image that no M-RoPE positions tell, from their count and the image's size.
//
// In:  the projector's kind, how many tokens it made, and of how many pixels: the image as the encoder got it.
// Out: rows and columns. A projector's tokens are squares of the image, in lines; so the side of a square that fits the
//      count is the one that is right. Knows neither libmtmd nor llama.cpp. Nothing here throws.
#pragma once

#include <cstdint>
#include <string>

namespace atp {

struct GridAsked {
    std::string type;        // clip.projector_type
    bool has_break = false;  // a learned token stands between two lines (Pixtral, Mistral 3)
    int32_t n_tokens = 0;
    int32_t width = 0;  // px; 0: not known
    int32_t height = 0;
};

struct ImageGrid {
    int32_t rows = 0;
    int32_t cols = 0;  // with line breaks a last column holds them, and the last row lacks its own
};

// one row if the tokens are no grid, or nobody can tell which
ImageGrid image_grid(const GridAsked & asked);

}  // namespace atp
