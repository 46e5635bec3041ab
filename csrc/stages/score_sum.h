// Sums, over all ubatches of one prefill of a stage, the attention that each live row receives.
//
// In:  the live rows and the kind of score; then, for each ubatch, the live rows in the ubatch.
// Out: the attention that each live row received. Attention is computed per cache cell; rows are found by their cells.
// Order of calls per ubatch: add_nodes, inputs_set, computed. Throws PlanError (no layer to score from) and StageError
// (attention that is not finite).
#pragma once

#include <cstdint>
#include <vector>

#include "prompt/sequence.h"
#include "prune/score_kind.h"
#include "stages/score.h"

namespace atp {

class ScoreSum {
  public:
    ScoreSum(ScoreKind kind, const Sequence & seq, const std::vector<int32_t> & live);

    bool wanted() const { return kind_ != ScoreKind::none; }
    size_t n_nodes() const;  // most nodes that add_nodes adds to a graph

    // rows: the live rows in the ubatch, in the order of the ubatch; causal: no row sees a later row
    void add_nodes(ggml_context * ctx, ggml_cgraph * graph, const CutGraph & cut, const std::vector<int32_t> & rows,
                   bool causal);

    // false: the graph leaves out cells that a row sees. Then build the graph again: add_nodes knows these cells now
    bool inputs_set(const CutGraph & cut);

    void computed();
    RowScores finish(int32_t n_layer) const;  // n_layer: layers run so far, for the error

  private:
    enum class Giver : uint8_t { none, image, question, last_row };

    std::vector<int32_t> guess_reach(bool causal) const;
    void add_block(const MapBlock & block);

    ScoreKind kind_;
    std::vector<Giver> giver_;   // per live row: the sum that the row's attention goes to
    std::vector<int32_t> cell_;  // per live row, -1 until placed
    int32_t n_question_rows_ = 0;
    int32_t next_cell_ = 0;  // one past the last cell used so far

    // per cell
    std::vector<float> last_row_;
    std::vector<double> self_, cross_;

    int64_t n_head_ = 1;

    // of the present ubatch
    std::vector<int32_t> rows_;
    std::vector<int32_t> reach_;  // read from the mask; empty: not known, guess
    ScoreTap tap_;
    AttentionMap map_;
};

}  // namespace atp
