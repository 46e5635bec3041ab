// A text model in fewer bits: llama.cpp's own quantiser, with every refusal before its first byte is written.
//
// In: a GGUF of F32, F16 or BF16 weights. Out: a GGUF with the same metadata and other weight types. Memory stays
// below n_quantise_buffer bytes, plus pages of the mapped source; llama.cpp can neither be stopped nor asked how far
// it is while it writes. Knows no projectors (mmproj files) and no sidecars.
// Throws ModelError. After a throw there is no target: a file that a failed write had begun is removed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace atp {

constexpr size_t n_quantise_buffer = size_t(64) << 20;

// what `type` may be, as users write it
std::vector<std::string> quantise_types();

// bytes of the file that quantise() would write. Reads no weights: the source may be a header followed by a hole
uint64_t quantised_size(const std::string & source, const std::string & type);

// n_threads 0: one per logical core, or as many as can be started
void quantise(const std::string & source, const std::string & target, const std::string & type, int32_t n_threads);

}  // namespace atp
