// The staged decoder: prefill through all stages with a keep list between them, then the token loop's single step.
//
// Owns the stages and their caches. One plan at a time; sequences are named by small ids.
// Throws PlanError, StageError, Cancelled. After a throw the sequence it happened on is gone, all others are whole.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "choose.h"
#include "decode_chain.h"
#include "interrupt.h"
#include "plan.h"
#include "scheduler.h"
#include "sequence.h"
#include "stage.h"

namespace atp {

class Model;

struct PrefillOptions {
    int32_t seq_id = 0;
    int32_t n_predict = 0;    // cells to hold free for decoding
    bool all_logits = false;  // logits of all live rows instead of the last one
};

struct PrefillResult {
    std::vector<float> logits;    // [n_outputs][n_vocab]
    std::vector<CutRecord> cuts;  // what was decided at each, and on what scores
};

class Decoder {
  public:
    explicit Decoder(const Model & model);
    ~Decoder();

    // checks the plan and builds its stages. Only while no sequence is alive
    void set_plan(const Plan & plan);
    const Plan & plan() const { return plan_; }

    PrefillResult prefill(const Sequence & seq, const PrefillOptions & options, Interrupt & interrupt);
    std::vector<float> decode(const std::vector<DecodeRow> & rows, Interrupt & interrupt);

    void remove(int32_t seq_id);
    void release();  // all sequences and all cache buffers
    size_t kv_bytes() const;
    size_t compute_bytes() const;          // of prefill's compute buffers
    std::vector<int32_t> n_cells() const;  // per stage

    // borders this architecture can be cut at, as layer counts; found once
    const std::vector<int32_t> & legal_cuts();

    // staged against plain llama_decode on a few tokens, unpruned, at the given cuts: NMSE of the logits
    double self_test(const std::vector<int32_t> & cuts);

  private:
    using Stages = std::vector<std::unique_ptr<Stage>>;
    static void check_score_layers(const Plan & plan, const Stages & stages);
    std::vector<float> plain_logits(std::vector<int32_t> tokens) const;
    void check_prompt(const Sequence & seq, const PrefillOptions & options) const;
    void check_rows(const std::vector<DecodeRow> & rows) const;
    PrefillResult run(const Sequence & seq, const PrefillOptions & options, Interrupt & interrupt);

    const Model & model_;
    Plan plan_;
    Stages stages_;
    std::unique_ptr<Scheduler> scheduler_;  // of prefill; made when first needed
    std::unique_ptr<DecodeChain> chain_;
    std::map<int32_t, int32_t> alive_;  // sequence id -> its next position
    std::vector<int32_t> legal_cuts_;
    bool legal_cuts_known_ = false;
};

}  // namespace atp
