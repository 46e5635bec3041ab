// Where the cuts are and what decides at each: checked before anything is computed.
//
// Cuts are layer counts: "after n layers", 0 meaning before the first layer. Knows no ggml.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/borders.h"
#include "base/stage_range.h"
#include "prune/policy.h"

namespace atp {

struct Cut {
    int32_t after = 0;  // layers already run when this cut is made
    Policy policy;      // by name (find_policy) or brought by the caller
    double keep = 1.0;
    uint64_t seed = 0;
};

using Plan = std::vector<Cut>;

// throws PlanError naming the offending cut: order, range [0, n_layer), legal borders (0 is always legal), keep in
// (0, 1], and no score asked for where nothing has been attended yet
void check_plan(const Plan & plan, int32_t n_layer, const Borders & borders);

// the stages between the cuts; a cut at 0 opens no stage of its own
std::vector<StageRange> stage_ranges(const Plan & plan, int32_t n_layer);

// mean over all layers of the live count: n_kept[k] is alive from cut k on
double layer_mean(const Plan & plan, const std::vector<int32_t> & n_kept, int32_t n_image_tokens, int32_t n_layer);

}  // namespace atp
