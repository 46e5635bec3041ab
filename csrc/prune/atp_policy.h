// The policy `atp`: one cut for each module of a sidecar, with the thresholds learned there (atp_head.h has the
// mathematics).
//
// In:  a sidecar's weights, and how many image tokens a caption may cost.
// Out: a plan. Its policies are pure functions: the input states what was spent before a cut, so one plan serves any
//      number of captions. Knows no ggml. Throws PlanError.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "prune/atp_weights.h"
#include "prune/plan.h"
#include "prune/policy.h"

namespace atp {

// image tokens that a caption may cost, mean over all layers (our addition; in the paper only the thresholds decide)
struct AtpBudget {
    double value = 1.0;
    bool is_share = true;  // of the prompt's image tokens, in (0, 1]; else a count, at least 1
};

// cuts after the layers that the modules were trained for. Throws PlanError where this model cannot be cut there, or
// where a budget is less than the layers before the first cut cost
Plan atp_plan(const std::shared_ptr<const AtpWeights> & weights, const std::optional<AtpBudget> & budget,
              int32_t n_layer, const std::vector<int32_t> & legal_cuts);

// the choice of module `k`. Throws PlanError when the budget is below the least cost of this prompt, and names that
// cost
Choice choose_atp(const AtpWeights & weights, size_t k, const std::optional<AtpBudget> & budget,
                  const PolicyInput & in);

}  // namespace atp
