// The staged decoder: prefill through all stages with a keep list between them, then the token loop's single step.
//
// Owns the stages and their caches. One plan at a time; sequences are named by small ids. A prompt alone has caches of
// just its size. After reserve() several share larger ones, and the text before their images is computed once.
// Throws PlanError, StageError, ImageError, Cancelled. After a throw the sequence it happened on is gone, all others
// are whole.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/interrupt.h"
#include "decoder/room.h"
#include "prompt/sequence.h"
#include "prune/decide_cut.h"
#include "prune/expected.h"
#include "prune/plan.h"
#include "stages/decode_chain.h"
#include "stages/scheduler.h"
#include "stages/stage.h"

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

    // after reserve():
    bool has_room = true;          // false: nothing changed, and there are no logits
    std::vector<int32_t> n_cells;  // per stage: what it takes, or would take (an upper bound for stages not reached)
    int32_t n_shared = 0;          // rows of the shared text, not in n_cells
};

class Decoder {
  public:
    explicit Decoder(const Model & model);
    ~Decoder();

    // checks the plan and builds its stages. Only while no sequence is alive
    void set_plan(const Plan & plan);
    const Plan & plan() const { return plan_; }

    // caches of so many cells each stage for at most n_parallel sequences at once (ids 0 to n_parallel - 1), until
    // close_room() or a plan with other stages; forgets the shared text. Only while no sequence is alive
    void reserve(const std::vector<int32_t> & n_cells, int32_t n_parallel);
    void close_room();
    const Room & room() const { return room_; }
    bool can_batch() const;  // several sequences at once

    // n_predict, or the positions that the prompt leaves of the context, if those are fewer and any
    int32_t within_context(const Sequence & seq, int32_t n_predict) const;

    // cells each stage will need for a prompt, those of a shared text included; says whether that is exact
    ExpectedRows expect(const Sequence & seq, int32_t n_predict) const;
    std::vector<size_t> cell_bytes() const;  // of one cell in each stage

    PrefillResult prefill(const Sequence & seq, const PrefillOptions & options, Interrupt & interrupt);
    std::vector<float> decode(const std::vector<DecodeRow> & rows, Interrupt & interrupt);

    void remove(int32_t seq_id);
    void release();  // all sequences and all cache buffers
    size_t kv_bytes() const;
    size_t compute_bytes() const;          // of prefill's compute buffers
    std::vector<int32_t> n_cells() const;  // per stage

    // borders this architecture can be cut at, as layer counts, and why not at the others; found once
    const Borders & borders();
    const std::vector<int32_t> & legal_cuts() { return borders().legal; }

    // staged against plain llama_decode, unpruned, at the given cuts: all rows of one prompt, then of another and a
    // step. The NMSE of the logits of the worst row
    double self_test(const std::vector<int32_t> & cuts);

  private:
    using Stages = std::vector<std::unique_ptr<Stage>>;
    static void check_scores(const Plan & plan, const Stages & stages);
    struct TestPrompt {
        std::vector<int32_t> prefill, decode;  // tokens
    };
    std::vector<TestPrompt> test_prompts() const;
    std::vector<float> plain_logits(const std::vector<TestPrompt> & prompts) const;
    std::vector<float> staged_logits(const std::vector<TestPrompt> & prompts);
    void check_prompt(const Sequence & seq, const PrefillOptions & options) const;
    void check_rows(const std::vector<DecodeRow> & rows) const;
    void check_values(const Sequence & seq) const;
    int32_t n_rows_at_once(const Sequence & seq) const;
    int32_t n_shareable(const Sequence & seq) const;
    bool admit(const Sequence & seq, const PrefillOptions & options, PrefillResult & result, Interrupt & interrupt);
    void compute_shared(const Sequence & seq, int32_t n_rows, Interrupt & interrupt);
    void forget_shared();
    void size_cache(Stage & stage, int32_t n_rows, int32_t n_ubatch);
    bool goes_aside() const { return room_.is_open() && n_parallel_ > 1; }
    void prepare_side(Stage & stage, int32_t n_rows, int32_t n_shared, int32_t n_ubatch);
    void join(Stage & stage, int32_t seq_id, int32_t n_shared);
    void run(const Sequence & seq, const PrefillOptions & options, Interrupt & interrupt, PrefillResult & result);
    void look_for_nan(const std::vector<float> & logits);

    const Model & model_;
    Plan plan_;
    Stages stages_;
    std::unique_ptr<Scheduler> scheduler_;  // of prefill; made when first needed
    std::unique_ptr<DecodeChain> chain_;
    std::map<int32_t, int32_t> alive_;  // sequence id -> its next position
    Room room_;                         // closed: a prompt alone
    int32_t n_parallel_ = 1;
    int32_t room_ubatch_ = 0;      // rows that the open room's sliding windows can take at once
    std::vector<int32_t> shared_;  // tokens of the shared text; sequence n_parallel_ holds their cells
    bool dirty_ = false;           // the caches may hold values that are no numbers
    std::optional<Borders> borders_;
    std::vector<float> plain_logits_;  // of the self-test's prompts; computed once
};

}  // namespace atp
