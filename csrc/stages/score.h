// The attention that rows receive, computed inside the stage's own graph.
//
// In:  a cut graph, and the rows of its ubatch whose attention is summed.
// Out: softmax(q k^T * scale + mask) of those rows, summed over heads, per cache cell: of one run of rows the sum
//      (add_score), or every row by itself (add_attention_map).
// Taken from the attention node itself (flash attention on: its q, k, mask, sinks, softcap; off: its softmax), never
// from tensor names of one architecture. The layer is the stage's last full-attention layer: a sliding-window layer
// sees only its window. Knows no policy. Throws PlanError with why_no_score().
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

struct ggml_context;
struct ggml_cgraph;
struct ggml_tensor;

namespace atp {

class CutGraph;

struct ScoreTap {
    ggml_tensor * sum = nullptr;  // F32 [1, n_kv], mean over heads
    int32_t n_rows = 0;           // rows that were summed
};

// appends the score nodes for ubatch rows [row_begin, row_end) to `graph`
ScoreTap add_score(ggml_context * ctx, ggml_cgraph * graph, const CutGraph & cut, int32_t row_begin, int32_t row_end);

// most nodes that add_attention_map appends, so that a graph and its scheduler can be made large enough
constexpr size_t max_map_nodes = 4096;

// a block of consecutive rows
struct MapBlock {
    ggml_tensor * map = nullptr;  // F32 [n_cells, n_rows]: attention to cells [0, n_cells), summed over heads
    int32_t row_begin = 0;        // in the ubatch
};

struct AttentionMap {
    std::vector<MapBlock> blocks;
    int64_t n_head = 0;
    int64_t n_kv = 0;
    const ggml_tensor * mask = nullptr;  // the leaf that states which row sees which cell; nullptr: not known
};

// appends the nodes for the ubatch rows i with wanted[i]. For each head, the map of a few rows exists at a time: some
// MB. reach[i]: row i sees no cell from reach[i] on. It may be a guess that saves work; read_reach() gives the truth
AttentionMap add_attention_map(ggml_context * ctx, ggml_cgraph * graph, const CutGraph & cut,
                               const std::vector<char> & wanted, const std::vector<int32_t> & reach);

// one past the last cell that each row of the ubatch sees, read from the mask; legal after the inputs are set
std::vector<int32_t> read_reach(const AttentionMap & map);

// true when no row sees a cell that the row's block leaves out
bool covers(const AttentionMap & map, const std::vector<int32_t> & reach);

// the cache cell of each row of the ubatch given to set_inputs; legal only before the graph is computed
std::vector<int32_t> read_cells(const CutGraph & cut);

// the layer that the score of this stage would be read from; -1 when there is no such layer
int32_t score_layer(const CutGraph & cut);

// why no score can be read from this stage; "" when one can
std::string why_no_score(const CutGraph & cut);

}  // namespace atp
