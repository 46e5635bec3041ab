// All stages of one decode step in one graph, built once and reused until a stage's cache view grows.
//
// In: one token per sequence. Out: logits [n_rows][n_vocab]. Several sequences may be decoded together.
// Throws StageError, Cancelled.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/interrupt.h"
#include "stages/graph_cut.h"
#include "stages/stage.h"

namespace atp {

struct DecodeRow {
    int32_t seq_id = 0;
    int32_t token = -1;
    int32_t pos = 0;
};

class DecodeChain {
  public:
    DecodeChain(const Model & model, std::vector<StageCache *> caches, const std::vector<StageRange> & ranges);
    ~DecodeChain();

    std::vector<float> step(const std::vector<DecodeRow> & rows, Interrupt & interrupt);

    // forgets the graph; call this before the caches that the graph points into change
    void reset();

  private:
    struct Memories;
    bool can_reuse();
    void build();
    void splice(const CutGraph & before, const CutGraph & after);

    const Model & model_;
    std::vector<StageCache *> caches_;
    std::vector<std::unique_ptr<CutGraph>> graphs_;
    Batcher batcher_;
    std::unique_ptr<Memories> memories_;  // memories of the present step; the graph's inputs point into them
    bool valid_ = false;
};

}  // namespace atp
