#include "prompt/image_grid.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

namespace atp {

namespace {

// projectors with a fixed number of queries that look at the whole image: no token has a place in the image
const char * const types_without_places[] = {"resampler", "deepseekocr2"};

bool has_places(const std::string & type) {
    return std::find(std::begin(types_without_places), std::end(types_without_places), type) ==
           std::end(types_without_places);
}

}  // namespace

ImageGrid image_grid(const GridAsked & asked) {
    const int32_t n = asked.n_tokens;
    const int32_t most = has_places(asked.type) ? std::gcd(asked.width, asked.height) : 0;
    for (int32_t side = 1; side <= most; ++side) {  // px of one token
        if (most % side != 0) {
            continue;
        }
        const int64_t rows = asked.height / side;
        const int64_t cols = asked.width / side + (asked.has_break ? 1 : 0);
        if (rows * cols - (asked.has_break ? 1 : 0) == n) {
            return {static_cast<int32_t>(rows), static_cast<int32_t>(cols)};
        }
    }
    const auto square = static_cast<int32_t>(std::lround(std::sqrt(static_cast<double>(n))));
    return square * square == n ? ImageGrid{square, square} : ImageGrid{1, n};
}

}  // namespace atp
