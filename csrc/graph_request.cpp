#include "graph_request.h"

#include "llama_private.h"

namespace atp {

int32_t n_outputs_of(const llama_ubatch & ubatch) {
    int32_t n = 0;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        n += ubatch.output[i] != 0;
    }
    return n;
}

GraphRequest probe_request(const llama_ubatch & ubatch, const llama_memory_context_i & memory,
                           ggml_backend_sched * sched) {
    return {&ubatch, &memory, sched, 1, true};
}

GraphRequest prefill_request(const llama_ubatch & ubatch, const llama_memory_context_i & memory,
                             ggml_backend_sched * sched, bool causal) {
    return {&ubatch, &memory, sched, n_outputs_of(ubatch), causal};
}

GraphRequest step_request(const llama_memory_context_i & memory, ggml_backend_sched * sched) {
    const llama_ubatch & ubatch = memory.get_ubatch();
    return {&ubatch, &memory, sched, static_cast<int32_t>(ubatch.n_tokens), true};
}

}  // namespace atp
