// The KV cache of one stage: layers [il_first, il_last) only, and only as many cells as asked for. (Architectures with
// another kind of memory get llama.cpp's own memory, for all layers.)
//
// Several sequences may live in it (unified cells). Knows nothing of images or policies.
// Throws StageError; a throw leaves no cache behind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/stage_range.h"

struct llama_memory_i;

namespace atp {

class Model;

class StageCache {
  public:
    StageCache(const Model & model, StageRange range);
    ~StageCache();

    // makes room for n_cells cells of n_seq sequences: empties the cache if it already has this size, else builds a new
    // cache and returns true. Only legal while no sequence is alive in the cache
    bool reserve(int32_t n_cells, int32_t n_ubatch, int32_t n_seq);

    // the number of cells of a cache is a multiple of this
    static int32_t cell_step(const Model & model);

    // true when the layers of other stages point into the tensors of this stage's layers
    bool has_guests() const { return has_guests_; }

    llama_memory_i * memory() const { return memory_.get(); }
    int32_t n_cells() const { return n_cells_; }
    size_t bytes() const;       // bytes of the real buffers
    size_t cell_bytes() const;  // bytes of one cell, in all layers

    void share(int32_t from, int32_t to, int32_t n_pos);  // the first positions of `from` belong to `to` as well
    void copy(const StageCache & other, int32_t from,
              int32_t to);                                     // copies sequence `from` of `other` to sequence `to`
    void remove(int32_t seq_id, int32_t first, int32_t last);  // positions [first, last); last -1: to the end
    void remove(int32_t seq_id);                               // forget one sequence
    void wipe();                                               // forget all sequences and set the buffers to 0
    void release();                                            // free the buffers

  private:
    const Model & model_;
    StageRange range_;
    std::unique_ptr<llama_memory_i> memory_;
    bool has_guests_ = false;
    int32_t n_cells_ = 0;
    int32_t n_ubatch_ = 0;
    int32_t n_seq_ = 0;
};

}  // namespace atp
