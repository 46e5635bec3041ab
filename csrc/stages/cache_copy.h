// Copies one sequence's cells from a cache to another cache of the same layers, with llama.cpp's save and restore.
//
// Goes through host memory, on every backend. Replaces the sequence's cells in `to`; the cache `to` chooses the places
// of the cells. Throws StageError when `to` has no room; then the sequence is in `from` only.
#pragma once

#include <cstdint>

struct llama_memory_i;

namespace atp {

void copy_sequence(const llama_memory_i & from, int32_t seq_from, llama_memory_i & to, int32_t seq_to);

}  // namespace atp
