#include "stages/graph_request.h"

#include "llama/llama_private.h"

namespace atp {

int32_t n_outputs_of(const llama_ubatch & ubatch) {
    int32_t n = 0;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        n += ubatch.output[i] != 0;
    }
    return n;
}

GraphRequest probe_request(const llama_ubatch & ubatch, const llama_memory_context_i & memory,
                           ggml_backend_sched * sched, bool has_guests) {
    return {&ubatch, &memory, sched, 1, true, has_guests};
}

GraphRequest prefill_request(const llama_ubatch & ubatch, const llama_memory_context_i & memory,
                             ggml_backend_sched * sched, bool causal, bool has_guests) {
    return {&ubatch, &memory, sched, n_outputs_of(ubatch), causal, has_guests};
}

GraphRequest step_request(const llama_memory_context_i & memory, ggml_backend_sched * sched, bool has_guests) {
    const llama_ubatch & ubatch = memory.get_ubatch();
    return {&ubatch, &memory, sched, static_cast<int32_t>(ubatch.n_tokens), true, has_guests};
}

}  // namespace atp
