#include "stages/scheduler.h"

#include "base/errors.h"
#include "llama/llama_private.h"
#include "llama/memory_room.h"
#include "llama/model.h"
#include "stages/score.h"

namespace atp {

Scheduler::Scheduler(const Model & model) : sched_(model.new_sched(model.max_nodes() + max_map_nodes)) {}

// a graph of one node differs from the graph of every stage: after its allocation, the next graph is planned anew
void Scheduler::forget_plan() {
    ggml_init_params ip = {};
    ip.mem_size = ggml_graph_overhead_custom(8, false) + 8 * ggml_tensor_overhead();
    ip.no_alloc = true;
    check_room(ip.mem_size, "a graph");
    const ggml_context_ptr ctx(ggml_init(ip));
    ggml_tensor * one = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 1);
    ggml_set_input(one);
    ggml_cgraph * graph = ggml_new_graph_custom(ctx.get(), 8, false);
    ggml_build_forward_expand(graph, ggml_scale(ctx.get(), one, 1.0f));
    ggml_backend_sched_reset(sched_.get());
    if (!ggml_backend_sched_alloc_graph(sched_.get(), graph)) {
        throw NoMemory("no memory for a compute buffer");
    }
    ggml_backend_sched_reset(sched_.get());
}

size_t Scheduler::bytes() const {
    size_t sum = 0;
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched_.get()); ++i) {
        sum += ggml_backend_sched_get_buffer_size(sched_.get(), ggml_backend_sched_get_backend(sched_.get(), i));
    }
    return sum;
}

}  // namespace atp
