// One cut of one prompt: makes the input of the policy from the live rows, calls the policy, checks the choice.
//
// In:  the rows alive before the cut, and the scores that the stage before it gave them.
// Out: the choice, and the scores of each image token for the record. Knows no ggml. Throws PlanError.
#pragma once

#include <cstdint>
#include <vector>

#include "prompt/sequence.h"
#include "prune/plan.h"
#include "prune/policy.h"
#include "prune/score_kind.h"

namespace atp {

// the progress of a prompt
struct Progress {
    int32_t n_layer = 0;  // of the model
    double spent = 0.0;   // live image tokens, summed over the layers done
};

struct CutRecord {
    Choice choice;
    std::vector<float> score;             // per live image token, as the policy saw them
    std::vector<double> self_sum, cross;  // per live image token; cross is the mean over the question's rows
};

CutRecord decide_cut(const Cut & cut, const Sequence & seq, const std::vector<int32_t> & live, const RowScores & scores,
                     const Progress & progress);

// number of image rows among the live rows
int32_t n_live_image_tokens(const Sequence & seq, const std::vector<int32_t> & live);

// throws PlanError where the plan cannot run on this prompt, before anything is computed
void check_plan_for(const Plan & plan, const Sequence & seq);

}  // namespace atp
