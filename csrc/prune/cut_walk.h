// One prompt on its way through a plan: which rows are alive, which stage comes next, and which cut before it.
//
// The decoder walks to run a prompt; expected_rows walks to forecast it. Both make the cut that is due, if one is, then
// pass the stage, until the walk is over. Knows no ggml.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/stage_range.h"
#include "prompt/sequence.h"
#include "prune/decide_cut.h"
#include "prune/plan.h"
#include "prune/policy.h"
#include "prune/score_kind.h"

namespace atp {

// refers to plan and prompt, which must outlive it
class CutWalk {
  public:
    // first_row: earlier rows are not part of the walk, because the shared text holds them
    CutWalk(const Plan & plan, const Sequence & seq, int32_t n_layer, int32_t first_row = 0);

    const std::vector<int32_t> & live() const { return live_; }  // rows of the prompt, ascending
    int32_t n_image_tokens() const;                              // among the live rows
    const Progress & progress() const { return progress_; }

    // the cut to make before the next stage; nullptr: there is no cut, or it has been made
    const Cut * due() const;
    // makes the cut. hidden: [n_live][row_size]; only the kept rows remain
    void keep(const KeepList & kept, size_t row_size, std::vector<float> & hidden);
    void keep_all();

    bool is_over() const { return done_ == progress_.n_layer; }
    StageRange stage() const;  // the next stage
    ScoreKind needs() const;   // the scores that the cut after this stage needs; none if no image token is alive
    void pass();               // the next stage is done

  private:
    const Sequence & seq_;
    std::vector<int32_t> live_;
    Progress progress_;
    Plan::const_iterator cut_, end_;  // the next cut
    int32_t done_ = 0;                // layers
};

}  // namespace atp
