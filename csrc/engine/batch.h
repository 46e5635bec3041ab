// Captions under way together: each is prefilled into the common caches, then all decode one token in each step.
//
// In:  encoded prompts; room in the caches, reserved before. Out: results, in the order in which captions end.
// When a caption ends, its room is free again. Knows no images and no policies.
// Throws StageError, PlanError, ImageError, Cancelled. A throw in start() ends that caption only. A throw in step()
// ends all captions under way.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/interrupt.h"
#include "decoder/decoder.h"
#include "engine/report.h"
#include "engine/result.h"
#include "text/generation.h"

namespace atp {

struct Started {
    int32_t slot = -1;             // slot of the caption; -1: no room and nothing changed, or the caption has ended
    std::vector<int32_t> n_cells;  // per stage: cells taken; without room, an upper bound of the cells needed
    std::optional<Result> result;  // the result of a caption that ended with its first token
};

class Batch {
  public:
    Batch(const Model & model, Decoder & decoder);
    ~Batch();

    // only while no caption is under way; both functions forget the shared text
    void set_plan(const Plan & plan);
    void reserve(const std::vector<int32_t> & n_cells, int32_t n_parallel);

    Started start(const Sequence & seq, GenerationParams params, Interrupt & interrupt);

    // decodes one token of each caption. Returns the captions that ended, by their slots, which are free again
    std::vector<std::pair<int32_t, Result>> step(Interrupt & interrupt);

    void drop(int32_t slot);
    void reset();  // drops all captions; the caches stay
    int32_t n_live() const;

    std::vector<int32_t> expect(const Sequence & seq, int32_t n_predict);  // cells per stage, at most
    std::vector<size_t> cell_bytes();
    std::vector<int32_t> n_free();  // cells per stage, now

    // throws StageError while captions are under way; `what` names the action that is refused
    void check_idle(const std::string & what) const;

  private:
    struct Caption;
    void settle();
    void settle_room();
    void advance(const std::vector<DecodeRow> & rows, Interrupt & interrupt,
                 std::vector<std::pair<int32_t, Result>> & ended);
    Result finish(Caption & caption);

    const Model & model_;
    Decoder & decoder_;
    Plan plan_;
    std::vector<int32_t> n_cells_;  // reserved cells per stage; empty: none yet
    std::vector<std::unique_ptr<Caption>> slots_;
};

}  // namespace atp
