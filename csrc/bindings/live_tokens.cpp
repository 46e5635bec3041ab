#include "bindings/live_tokens.h"

namespace atp::python {

PolicyInput live_tokens(const std::vector<int32_t> & live, const std::vector<std::pair<int32_t, int32_t>> & grids,
                        bool causal) {
    PolicyInput in;
    for (const auto & [rows, cols] : grids) {
        ImageSpan span;
        span.first = in.images.empty() ? 0 : in.images.back().first + in.images.back().n_tokens;
        span.n_tokens = rows * cols;
        span.grid_rows = rows;
        span.grid_cols = cols;
        span.causal = causal;
        in.images.push_back(span);
    }
    for (const int32_t index : live) {
        for (size_t im = 0; im < in.images.size(); ++im) {
            const ImageSpan & span = in.images[im];
            if (index >= span.first && index < span.first + span.n_tokens) {
                in.index.push_back(index);
                in.image.push_back(static_cast<int32_t>(im));
                in.y.push_back(span.y(index));
                in.x.push_back(span.x(index));
            }
        }
    }
    return in;
}

}  // namespace atp::python
