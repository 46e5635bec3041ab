// How many rows of a prompt each stage will hold, told before anything is computed.
//
// In:  a plan and a prompt. Out: live rows per stage; exact for policies that keep a fixed share, an upper bound else.
// Knows no ggml. Throws PlanError (a budget that this prompt cannot meet).
#pragma once

#include <cstdint>
#include <vector>

#include "prompt/sequence.h"
#include "prune/plan.h"

namespace atp {

struct ExpectedRows {
    std::vector<int32_t> n_live;  // per stage
    bool exact = true;
};

ExpectedRows expected_rows(const Plan & plan, const Sequence & seq, int32_t n_layer);

}  // namespace atp
