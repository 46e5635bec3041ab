#include "stages/decode_chain.h"

#include "base/errors.h"
#include "llama/abort_guard.h"
#include "llama/llama_private.h"
#include "llama/log_capture.h"
#include "llama/memory_room.h"
#include "llama/model.h"

namespace atp {

struct DecodeChain::Memories {
    ggml_backend_sched_ptr sched;
    ggml_context_ptr ctx;
    ggml_cgraph * graph = nullptr;
    std::vector<llama_memory_context_ptr> now;
    std::vector<llama_memory_context_ptr> previous;
};

namespace {

size_t chain_nodes(const Model & model) {
    return 2 * model.max_nodes();
}

}  // namespace

DecodeChain::DecodeChain(const Model & model, std::vector<StageCache *> caches, const std::vector<StageRange> & ranges)
    : model_(model), caches_(std::move(caches)), batcher_(model), memories_(new Memories) {
    for (const StageRange & range : ranges) {
        graphs_.push_back(std::make_unique<CutGraph>(model, range));
    }
}

DecodeChain::~DecodeChain() = default;

void DecodeChain::reset() {
    valid_ = false;
    memories_->now.clear();
    memories_->previous.clear();
}

bool DecodeChain::can_reuse() {
    if (!valid_) {
        return false;
    }
    // ask every stage, without a shortcut: asking also binds the stage's inputs to the new memory context
    bool all = true;
    for (size_t s = 0; s < graphs_.size(); ++s) {
        const GraphRequest request = step_request(*memories_->now[s], memories_->sched.get(), caches_[s]->has_guests());
        all = graphs_[s]->can_reuse(request) && all;
    }
    return all;
}

// connects two graphs: the hidden state that leaves `before` becomes the input of `after`
void DecodeChain::splice(const CutGraph & before, const CutGraph & after) {
    for (ggml_tensor * node : after.nodes()) {
        for (ggml_tensor *& src : node->src) {
            src = src == after.input() ? before.output() : src;
        }
        if (node->view_src == after.input()) {
            node->view_src = before.output();
        }
    }
    before.output()->flags &= ~GGML_TENSOR_FLAG_OUTPUT;
}

void DecodeChain::build() {
    valid_ = false;
    Memories & m = *memories_;
    const size_t max_nodes = chain_nodes(model_);
    if (!m.sched) {
        m.sched = model_.new_sched(max_nodes);
    }
    ggml_backend_sched_reset(m.sched.get());
    std::vector<const CutGraph *> parts;
    for (size_t s = 0; s < graphs_.size(); ++s) {
        graphs_[s]->build(step_request(*m.now[s], m.sched.get(), caches_[s]->has_guests()));
        if (s > 0) {
            splice(*graphs_[s - 1], *graphs_[s]);
        }
        parts.push_back(graphs_[s].get());
    }
    ggml_init_params ip = {};
    ip.mem_size = ggml_graph_overhead_custom(max_nodes, false) + 64 * ggml_tensor_overhead();
    ip.no_alloc = true;
    check_room(ip.mem_size, "the graph of a decode step");
    m.ctx.reset(ggml_init(ip));
    m.graph = assemble(m.ctx.get(), max_nodes, parts);
    if (!ggml_backend_sched_alloc_graph(m.sched.get(), m.graph)) {
        throw NoMemory("no memory for the compute buffer of a decode step; use a smaller batch or model");
    }
    valid_ = true;
}

std::vector<float> DecodeChain::step(const std::vector<DecodeRow> & rows, Interrupt & interrupt) {
    interrupt.check();
    std::vector<std::array<int32_t, 4>> pos(rows.size());
    std::vector<BatchRow> batch(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
        pos[i] = {rows[i].pos, rows[i].pos, rows[i].pos, rows[i].pos};
        batch[i] = {pos[i].data(), rows[i].token, nullptr, rows[i].seq_id, true};
    }
    Memories & m = *memories_;
    m.previous = std::move(m.now);
    m.now.clear();
    for (StageCache * cache : caches_) {
        m.now.push_back(batcher_.place(*cache->memory(), batch, static_cast<int32_t>(batch.size())));
        if (!m.now.back()->apply()) {
            throw StageError("llama.cpp could not apply a decode step to the KV cache: " + log_capture::last_error());
        }
        if (m.now.back()->get_ubatch().n_tokens != rows.size()) {
            throw StageError("this architecture's memory decodes one row a sequence at a time");
        }
    }
    if (!can_reuse()) {
        build();
    }
    for (size_t s = 0; s < graphs_.size(); ++s) {
        graphs_[s]->result().set_inputs(&m.now[s]->get_ubatch());
    }
    const AbortGuard abort(model_.cpu_backend(), interrupt);
    const ggml_status status = ggml_backend_sched_graph_compute(m.sched.get(), m.graph);
    interrupt.check();
    if (status != GGML_STATUS_SUCCESS) {
        throw StageError("computing a decode step failed: " + log_capture::last_error());
    }
    const ggml_tensor * logits = graphs_.back()->output();
    if (logits->ne[1] != static_cast<int64_t>(rows.size())) {
        throw StageError("expected logits of " + std::to_string(rows.size()) + " rows, the graph gives " +
                         std::to_string(logits->ne[1]));
    }
    std::vector<float> out(ggml_nelements(logits));
    ggml_backend_tensor_get(logits, out.data(), 0, ggml_nbytes(logits));
    return out;
}

}  // namespace atp
