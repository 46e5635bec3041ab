// One sequence's cells from a cache to another of the same layers, by llama.cpp's own way to save and restore them.
//
// Goes through host memory, on every backend. The sequence's cells in `to` are replaced; where they lie is its choice.
// Throws StageError when `to` has no room; the sequence is then in `from` only.
#pragma once

#include <cstdint>

struct llama_memory_i;

namespace atp {

void copy_sequence(const llama_memory_i & from, int32_t seq_from, llama_memory_i & to, int32_t seq_to);

}  // namespace atp
