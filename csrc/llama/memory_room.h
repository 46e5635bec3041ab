// Whether there is memory for what llama.cpp is about to do. Asked before it is called: where ggml gets no memory for
// its graphs, it ends the process.
//
// Two questions. check_fits: an estimate of a whole load and one caption, from the headers of the files. check_room:
// would the system give so many bytes now? Neither takes memory. Knows no stages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace atp {

struct LoadNeeds {
    std::string model;      // file
    std::string projector;  // file, or ""
    int32_t n_threads = 1;
    bool on_cpu = true;  // the weights, so that some are repacked
};

// Throws ModelError if the files plainly do not fit: into the address space that this process may still take (ulimit
// -v), or, as far as they are not mapped, into memory and swap. Says nothing of files that cannot be read
void check_fits(const LoadNeeds & needs);

// Throws NoMemory unless the system would give n_bytes now, and a little more. `what` is "a compute buffer"
void check_room(uint64_t n_bytes, const std::string & what);

// what ggml_backend_sched_new takes for graphs of so many nodes
uint64_t sched_bytes(size_t n_nodes);

// graphs of libmtmd's encoders have room for so many
constexpr size_t encoder_nodes = 8192;

// address space this process may still take; nothing without a limit, or where it cannot be told
std::optional<uint64_t> address_space_left();

}  // namespace atp
