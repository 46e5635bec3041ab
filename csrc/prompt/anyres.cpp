#include "prompt/anyres.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/errors.h"

namespace atp {

namespace {

constexpr double shrink_above = 1.1;  // a grid up to so much longer than the limit is left alone

// a // b of Python's floats, whose quotient is made from the exact remainder
int32_t floor_divide(double a, double b) {
    const double quotient = (a - std::fmod(a, b)) / b;
    const double whole = std::floor(quotient);
    return static_cast<int32_t>(quotient - whole > 0.5 ? whole + 1.0 : whole);
}

// of `current` cells, the number on each side that an image of length `own`, scaled by `scale`, does not cover; these
// cells are cut off. As with int(round(x, 7)) in Python, a value up to 0.5e-7 below a whole number counts as that
// number
int32_t cells_beside(int32_t current, double own, double scale) {
    const auto covered = static_cast<int32_t>(std::floor(own * scale + 0.5e-7));
    return (current - covered) / 2;
}

int32_t square_side(int32_t n_tokens) {
    const auto side = static_cast<int32_t>(std::lround(std::sqrt(static_cast<double>(n_tokens))));
    return side * side == n_tokens ? side : 0;
}

// the tiles' features as one grid; the overview is not part of it
class Canvas {
  public:
    Canvas(const std::vector<float> & features, const TileSet & tiles, int32_t side, int32_t n_embd)
        : features_(features), tiles_(tiles), side_(side), n_embd_(n_embd) {}

    // [n_embd] of a cell
    const float * at(int32_t y, int32_t x) const {
        const size_t tile = 1 + static_cast<size_t>(y / side_) * tiles_.cols + x / side_;
        const size_t cell = static_cast<size_t>(y % side_) * side_ + x % side_;
        return &features_[(tile * side_ * side_ + cell) * n_embd_];
    }

  private:
    const std::vector<float> & features_;
    const TileSet & tiles_;
    int32_t side_;
    int32_t n_embd_;
};

// where a line of `n` cells is read for cell `i` of `n_out`: two neighbours and their weights. Half-pixel centres,
// without a wider filter for shrinking: torch's bilinear interpolation with align_corners=False
struct Sample {
    int32_t first, second;
    float w_first, w_second;

    Sample(int32_t i, int32_t n, int32_t n_out) {
        const float scale = static_cast<float>(n) / static_cast<float>(n_out);
        const float at = std::max(0.0f, scale * (static_cast<float>(i) + 0.5f) - 0.5f);
        first = std::min(static_cast<int32_t>(at), n - 1);
        second = std::min(first + 1, n - 1);
        w_second = std::clamp(at - static_cast<float>(first), 0.0f, 1.0f);
        w_first = 1.0f - w_second;
    }
};

void append_cells(const Canvas & canvas, const TileLayout & at, int32_t n_embd, const std::vector<float> & newline,
                  std::vector<float> & out) {
    const bool whole = at.out_rows == at.rows && at.out_cols == at.cols;
    for (int32_t y = 0; y < at.out_rows; ++y) {
        const Sample v(y, at.rows, at.out_rows);
        for (int32_t x = 0; x < at.out_cols; ++x) {
            if (whole) {
                const float * cell = canvas.at(at.top + y, at.left + x);
                out.insert(out.end(), cell, cell + n_embd);
                continue;
            }
            const Sample h(x, at.cols, at.out_cols);
            const float * a = canvas.at(at.top + v.first, at.left + h.first);
            const float * b = canvas.at(at.top + v.first, at.left + h.second);
            const float * c = canvas.at(at.top + v.second, at.left + h.first);
            const float * d = canvas.at(at.top + v.second, at.left + h.second);
            for (int32_t i = 0; i < n_embd; ++i) {
                out.push_back(v.w_first * (h.w_first * a[i] + h.w_second * b[i]) +
                              v.w_second * (h.w_first * c[i] + h.w_second * d[i]));
            }
        }
        out.insert(out.end(), newline.begin(), newline.end());
    }
}

void append_span(int32_t rows, int32_t cols, PackedImage & packed) {
    ImageSpan span;
    span.grid_rows = rows;
    span.grid_cols = cols;
    span.n_tokens = rows * cols;
    packed.spans.push_back(span);
}

}  // namespace

TileLayout tile_layout(const TileSet & tiles, int32_t side) {
    TileLayout at;
    at.rows = tiles.rows * side;
    at.cols = tiles.cols * side;
    const double height = tiles.height;
    const double width = tiles.width;
    if (width / height > static_cast<double>(at.cols) / at.rows) {
        at.top = cells_beside(at.rows, height, at.cols / width);
        at.rows -= 2 * at.top;
    } else {
        at.left = cells_beside(at.cols, width, at.rows / height);
        at.cols -= 2 * at.left;
    }
    at.out_rows = at.rows;
    at.out_cols = at.cols;
    if (tiles.max_tiles == 0) {
        return at;
    }
    const double most = static_cast<double>(tiles.max_tiles) * side * side;
    const double ratio = std::sqrt(static_cast<double>(at.rows) * at.cols / most);
    if (ratio > shrink_above) {
        at.out_rows = floor_divide(at.rows, ratio);
        at.out_cols = floor_divide(at.cols, ratio);
        if (at.out_rows < 1 || at.out_cols < 1) {
            throw ImageError("an image of " + std::to_string(tiles.width) + "x" + std::to_string(tiles.height) +
                             " pixels is too narrow to be shrunk to " + std::to_string(tiles.max_tiles) +
                             " tiles; cut it into pieces first");
        }
    }
    return at;
}

PackedImage pack_tiles(const std::vector<float> & features, const TileSet & tiles, int32_t n_embd,
                       const std::vector<float> & newline) {
    const size_t n_values = features.size() / tiles.n_tiles();
    const auto n_tokens = static_cast<int32_t>(n_values / n_embd);
    const int32_t side = square_side(n_tokens);
    PackedImage packed;
    packed.rows.assign(features.begin(), features.begin() + static_cast<std::ptrdiff_t>(n_values));
    if (tiles.n_tiles() == 1) {
        append_span(side ? side : 1, side ? side : n_tokens, packed);
        if (!newline.empty()) {
            packed.rows.insert(packed.rows.end(), newline.begin(), newline.end());
            append_span(1, 1, packed);
        }
        return packed;
    }
    if (side == 0) {
        throw ImageError("tiles of " + std::to_string(n_tokens) + " image tokens make no square grid; this projector " +
                         "takes one tile an image");
    }
    const TileLayout at = tile_layout(tiles, side);
    append_span(side, side, packed);
    if (at.rows > 0) {
        append_cells(Canvas(features, tiles, side, n_embd), at, n_embd, newline, packed.rows);
        const int32_t cols = at.out_cols + (newline.empty() ? 0 : 1);
        if (cols > 0) {
            append_span(at.out_rows, cols, packed);
        }
    }
    return packed;
}

}  // namespace atp
