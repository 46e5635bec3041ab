#include "text/repetition.h"

#include <algorithm>

namespace atp {

bool Repetition::push(int32_t token) {
    const size_t n = tokens_.size();
    tokens_.push_back(token);
    for (size_t period = 1; period <= std::min(n, longest_period); ++period) {
        n_same_[period] = tokens_[n - period] == token ? n_same_[period] + 1 : 0;
        const size_t n_cycle = n_same_[period] + period;
        if (n_cycle >= std::max(least_tokens, least_rounds * period)) {
            start_ = n + 1 - n_cycle;
            period_ = period;
            return true;
        }
    }
    return false;
}

}  // namespace atp
