// Plain lists -> what a policy sees, for policies that run without a model.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "prune/policy.h"

namespace atp::python {

// what a policy sees when the image tokens `live` (ascending) are alive on patch grids of these rows and columns
PolicyInput live_tokens(const std::vector<int32_t> & live, const std::vector<std::pair<int32_t, int32_t>> & grids,
                        bool causal);

}  // namespace atp::python
