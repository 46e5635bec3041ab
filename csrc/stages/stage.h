// One stage at prefill: layers [il_first, il_last) over the live rows, filling its own KV cache.
//
// In:  live rows and, from the second stage on, their hidden states [n_live][row_size].
// Out: hidden states of the same rows, or the logits of the last row; on request the score of every live row.
// Knows no reason for dropping rows. Throws StageError, PlanError (scores), Cancelled. After a throw, the caller
// removes the sequence from the cache; nothing else has changed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/interrupt.h"
#include "prompt/sequence.h"
#include "prune/score_kind.h"
#include "stages/batcher.h"
#include "stages/graph_cut.h"
#include "stages/stage_cache.h"

namespace atp {

struct StageInput {
    const Sequence * seq = nullptr;
    const std::vector<int32_t> * live = nullptr;  // indices into seq->rows, ascending
    int32_t seq_id = 0;
    StageCache * cache = nullptr;  // the cache to read and write: the stage's own cache, or its side cache
    ScoreKind score = ScoreKind::none;
    bool merge_kinds = false;  // text and image rows may share a ubatch where the stage does not read the prompt
    bool all_logits = false;   // the last stage gives logits of all rows, not of the last one only
};

struct StageOutput {
    std::vector<float> logits;  // [n_outputs][n_vocab], last stage only
    RowScores scores;           // from the stage's last full-attention layer
};

class Stage {
  public:
    Stage(const Model & model, StageRange range);

    // hidden: in and out (the last stage clears it)
    // sched: several stages may share one scheduler if its plan is forgotten between them (scheduler.h)
    StageOutput prefill(const StageInput & in, HiddenRows & hidden, ggml_backend_sched * sched, Interrupt & interrupt);

    StageRange range() const { return range_; }
    StageCache & cache() { return cache_; }
    const StageCache & cache() const { return cache_; }

    // a cache for one prompt, besides the common cache: attention in it does not visit the cells of other prompts
    StageCache & side_cache() { return side_cache_; }
    const StageCache & side_cache() const { return side_cache_; }

    size_t cell_bytes() const { return cell_bytes_; }  // bytes of one cell of the cache, in all layers of the stage

    // why a policy behind this stage can have no scores; "" when it can
    const std::string & why_no_score() const { return why_no_score_; }

  private:
    struct Run;  // the state of one prefill over its ubatches
    void run_segment(Run & run, const Segment & segment);
    void run_ubatch(Run & run, const Segment & segment, const llama_ubatch & ubatch,
                    const llama_memory_context_i & memory);
    ggml_cgraph * make_graph(Run & run, const GraphRequest & request, const std::vector<int32_t> & rows,
                             ggml_context * ctx);
    void compute(Run & run, const Segment & segment, const llama_ubatch & ubatch, ggml_cgraph * graph);
    void read_logits(Run & run, const Segment & segment, const llama_ubatch & ubatch) const;
    bool wants_logits(const Run & run, size_t i) const;

    const Model & model_;
    StageRange range_;
    StageCache cache_;
    StageCache side_cache_;
    Batcher batcher_;
    CutGraph graph_;
    bool reads_prompt_ = true;
    std::string why_no_score_;
    size_t cell_bytes_ = 0;
    int dim_in_ = 1;  // dimension of the hidden state that runs over rows
    int dim_out_ = 1;
};

}  // namespace atp
