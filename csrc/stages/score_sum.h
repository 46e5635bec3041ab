// What one prefill of a stage sums up: the attention each live row receives, over all its ubatches.
//
// In:  the live rows and the kind of score; then, ubatch by ubatch, which live rows it holds.
// Out: per live row what it received. Attention comes per cache cell; rows are found by their cells.
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
    size_t n_nodes() const;  // room that add_nodes needs in a graph

    // rows: the live rows in the ubatch, in its order; causal: none of them sees a later one
    void add_nodes(ggml_context * ctx, ggml_cgraph * graph, const CutGraph & cut, const std::vector<int32_t> & rows,
                   bool causal);

    // false: the graph leaves out cells that are seen. Build it again; add_nodes then knows them
    bool inputs_set(const CutGraph & cut);

    void computed();
    RowScores finish(int32_t n_layer) const;  // n_layer: layers run so far, for the error

  private:
    enum class Giver : uint8_t { none, image, question, last_row };

    std::vector<int32_t> guess_reach(bool causal) const;
    void add_block(const MapBlock & block);

    ScoreKind kind_;
    std::vector<Giver> giver_;   // per live row: which sum its attention goes to
    std::vector<int32_t> cell_;  // per live row, -1 until placed
    int32_t n_question_rows_ = 0;
    int32_t next_cell_ = 0;  // behind all cells seen so far

    // per cell
    std::vector<float> last_row_;
    std::vector<double> self_, cross_;

    int64_t n_head_ = 1;

    // of the present ubatch
    std::vector<int32_t> rows_;
    std::vector<int32_t> reach_;  // known from the mask; empty: guess
    ScoreTap tap_;
    AttentionMap map_;
};

}  // namespace atp
