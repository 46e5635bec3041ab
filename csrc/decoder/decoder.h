// The staged decoder: prefill through all stages with a keep list between them, then the token loop's single step.
//
// Owns the stages and their caches. One plan at a time; sequences are named by small ids. A prompt that runs alone gets
// caches of exactly its size. After reserve(), several prompts share larger caches, and the text before their images is
// computed once. Throws PlanError, StageError, ImageError, Cancelled. After a throw, the sequences of the failed call
// are removed, and all other sequences can go on.
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
    int32_t n_predict = 0;    // cells to keep free for decoding
    bool all_logits = false;  // logits of all live rows instead of the last one
};

struct PrefillResult {
    std::vector<float> logits;    // [n_outputs][n_vocab]
    std::vector<CutRecord> cuts;  // the choice at each cut, and the scores for it

    // after reserve():
    bool has_room = true;          // false: nothing changed, and there are no logits
    std::vector<int32_t> n_cells;  // per stage: cells taken, or needed (an upper bound for stages not reached)
    int32_t n_shared = 0;          // rows of the shared text, not in n_cells
};

class Decoder {
  public:
    explicit Decoder(const Model & model);
    ~Decoder();

    // checks the plan and builds its stages. Only while no sequence is alive
    void set_plan(const Plan & plan);
    const Plan & plan() const { return plan_; }

    // opens the room: caches of n_cells[s] cells for stage s, for at most n_parallel sequences at once (ids 0 to
    // n_parallel - 1), until close_room() or a plan with other stages. Forgets the shared text. Only while no sequence
    // is alive
    void reserve(const std::vector<int32_t> & n_cells, int32_t n_parallel);
    void close_room();
    const Room & room() const { return room_; }
    bool can_batch() const;  // whether several sequences can be alive at once

    // n_predict, or the number of positions that the prompt leaves free in the context, if it is above 0 and smaller
    int32_t within_context(const Sequence & seq, int32_t n_predict) const;

    // cells that each stage will need for a prompt, with the cells of a shared text; says whether the number is exact
    ExpectedRows expect(const Sequence & seq, int32_t n_predict) const;
    std::vector<size_t> cell_bytes() const;  // bytes of one cell in each stage

    PrefillResult prefill(const Sequence & seq, const PrefillOptions & options, Interrupt & interrupt);
    std::vector<float> decode(const std::vector<DecodeRow> & rows, Interrupt & interrupt);

    void remove(int32_t seq_id);
    void release();  // frees all sequences and all cache buffers
    size_t kv_bytes() const;
    size_t compute_bytes() const;          // bytes of the compute buffers of prefill
    std::vector<int32_t> n_cells() const;  // per stage

    // the borders, as layer counts, where this architecture can be cut, and the reasons for all others; computed once
    const Borders & borders();
    const std::vector<int32_t> & legal_cuts() { return borders().legal; }

    // compares the stages, without pruning, with plain llama_decode: all rows of one prompt, then all rows and one
    // decode step of a second prompt. Returns the NMSE of the logits of the worst row
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
    std::unique_ptr<Scheduler> scheduler_;  // the scheduler of prefill; made on first use
    std::unique_ptr<DecodeChain> chain_;
    std::map<int32_t, int32_t> alive_;  // sequence id -> its next position
    Room room_;                         // closed: prompts run alone
    int32_t n_parallel_ = 1;
    int32_t room_ubatch_ = 0;      // rows that the open room's sliding windows can take at once
    std::vector<int32_t> shared_;  // tokens of the shared text; sequence n_parallel_ holds their cells
    bool dirty_ = false;           // whether the caches may hold NaN
    std::optional<Borders> borders_;
    std::vector<float> plain_logits_;  // plain logits of the self-test's prompts; computed once
};

}  // namespace atp
