// The attention an image token receives, computed inside the stage's own graph.
//
// In:  a cut graph and the rows of its ubatch whose attention counts.
// Out: one number per cache cell, sum over those rows of the mean over heads of softmax(q k^T * scale + mask).
// Taken from the attention node itself (flash attention on: its q, k, mask, sinks, softcap; off: its softmax), never
// from tensor names of one architecture. The layer is the stage's last full-attention layer: a sliding-window layer
// sees only its window. Knows no policy. Throws PlanError when the stage has no such layer.
#pragma once

#include <cstdint>
#include <vector>

struct ggml_context;
struct ggml_cgraph;
struct ggml_tensor;

namespace atp {

class CutGraph;

struct ScoreTap {
    ggml_tensor * sum = nullptr;  // F32 [1, n_kv]
    int32_t n_rows = 0;           // rows that were summed
};

// appends the score nodes for ubatch rows [row_begin, row_end) to `graph`
ScoreTap add_score(ggml_context * ctx, ggml_cgraph * graph, const CutGraph & cut, int32_t row_begin, int32_t row_end);

// the cache cell of each row of the ubatch given to set_inputs; legal only before the graph is computed
std::vector<int32_t> read_cells(const CutGraph & cut);

// layer the score of this stage would be read from; -1 when it has none
int32_t score_layer(const CutGraph & cut);

}  // namespace atp
