// What a stage's graph is built for: rows placed in the stage's cache, and the scheduler that will run the graph.
#pragma once

#include <cstdint>

struct ggml_backend_sched;
struct llama_ubatch;
struct llama_memory_context_i;

namespace atp {

struct GraphRequest {
    const llama_ubatch * ubatch = nullptr;
    const llama_memory_context_i * memory = nullptr;
    ggml_backend_sched * sched = nullptr;  // the scheduler that will run the graph
    int32_t n_outputs = 0;                 // rows whose logits are wanted
    bool causal = true;
    bool has_guests = false;  // StageCache::has_guests() of the memory
};

// number of rows of the ubatch that are marked as outputs
int32_t n_outputs_of(const llama_ubatch & ubatch);

// a request to inspect a graph, not to run it: logits of one row
GraphRequest probe_request(const llama_ubatch & ubatch, const llama_memory_context_i & memory,
                           ggml_backend_sched * sched, bool has_guests);

// a request for the prefill of a ubatch: logits of the rows marked as outputs
GraphRequest prefill_request(const llama_ubatch & ubatch, const llama_memory_context_i & memory,
                             ggml_backend_sched * sched, bool causal, bool has_guests);

// a request for a decode step with the present ubatch of `memory`: logits of every row
GraphRequest step_request(const llama_memory_context_i & memory, ggml_backend_sched * sched, bool has_guests);

}  // namespace atp
