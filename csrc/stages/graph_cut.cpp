#include "stages/graph_cut.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "base/errors.h"
#include "llama/llama_private.h"
#include "llama/model.h"
#include "stages/liveness.h"

namespace atp {

namespace {

bool is_input_leaf(const ggml_tensor * t) {
    return (t->flags & GGML_TENSOR_FLAG_INPUT) && t->op == GGML_OP_NONE;
}

std::string stage_name(StageRange r) {
    return "layers " + std::to_string(r.il_first) + " to " + std::to_string(r.il_last - 1);
}

// makes a tensor that the previous stage computes a leaf, which this stage fills
void make_leaf(ggml_tensor * t) {
    t->op = GGML_OP_NONE;
    for (ggml_tensor *& src : t->src) {
        src = nullptr;
    }
    t->flags = (t->flags & ~GGML_TENSOR_FLAG_COMPUTE) | GGML_TENSOR_FLAG_INPUT;
}

// keeps a layer's last norm on the device of the layer; without this, the scheduler may move it to the next device
void pin_norm(const Model & model, ggml_backend_sched * sched, int32_t n_tokens, ggml_tensor * t, const char * name,
              int il) {
    const llama_model & m = *model.llama();
    const bool full_offload = m.n_gpu_layers() > m.hparams.n_layer_all;
    if ((n_tokens >= 32 && !full_offload) || il < 0 ||
        (std::strcmp(name, "norm") != 0 && std::strcmp(name, "l_last") != 0)) {
        return;
    }
    for (ggml_backend_t backend : model.backends()) {
        if (ggml_backend_get_device(backend) == m.dev_layer(il) && ggml_backend_supports_op(backend, t)) {
            ggml_backend_sched_set_tensor_backend(sched, t, backend);
        }
    }
}

}  // namespace

CutGraph::CutGraph(const Model & model, StageRange range)
    : model_(model), range_(range), is_last_(range.il_last == model.n_layer()),
      result_(new llm_graph_result(static_cast<int64_t>(model.max_nodes()))) {}

CutGraph::~CutGraph() = default;

llm_graph_params CutGraph::graph_params(const GraphRequest & request) {
    static const llama_adapter_cvec no_cvec;
    static const llama_adapter_loras no_loras;
    static const llama_cross no_cross;
    llm_graph_params p = {};
    p.arch = model_.llama()->arch;
    p.hparams = model_.llama()->hparams;
    p.cparams = model_.cparams();
    p.cparams.causal_attn = request.causal;
    p.ubatch = *request.ubatch;
    p.gtype = LLM_GRAPH_TYPE_DEFAULT;
    p.sched = request.sched;
    p.backend_cpu = model_.cpu_backend();
    p.cvec = &no_cvec;
    p.loras = &no_loras;
    p.mctx = request.memory;
    p.cross = &no_cross;
    p.prec_policy = &model_.llama()->prec_policy;
    p.n_outputs = static_cast<uint32_t>(request.n_outputs);
    p.cb = [this, sched = request.sched](const llama_ubatch & ubatch, ggml_tensor * t, const char * name, int il) {
        if (il >= 0) {
            ggml_format_name(t, "%s-%d", name, il);
        } else {
            ggml_set_name(t, name);
        }
        names_[t->name] = t;
        if (il >= range_.il_first && il < range_.il_last) {
            pin_norm(model_, sched, static_cast<int32_t>(ubatch.n_tokens), t, name, il);
        }
    };
    p.res = result_.get();
    return p;
}

bool CutGraph::can_reuse(const GraphRequest & request) {
    return output_ && result_->can_reuse(graph_params(request));
}

void CutGraph::build(const GraphRequest & request) {
    output_ = nullptr;
    input_ = nullptr;
    names_.clear();
    nodes_.clear();
    result_->reset();
    ggml_cgraph * whole = model_.llama()->build_graph(graph_params(request));
    if (!whole) {
        throw StageError("llama.cpp built no graph for architecture '" + model_.arch() + "'");
    }
    cut(whole, request.has_guests);
    check_foreign();
    check_memory();
    if (request.has_guests) {
        check_written_once(whole);
    }
    find_prompt_reads();
}

void CutGraph::cut(ggml_cgraph * whole, bool has_guests) {
    const Liveness live(whole);
    const auto border = [&](int32_t il) {
        int32_t n_alive = 0;
        ggml_tensor * t = live.border(il, &n_alive);
        if (!t || !ggml_is_contiguous(t)) {
            throw StageError("architecture '" + model_.arch() + "' cannot be cut after " + std::to_string(il) +
                             " layers: " + std::to_string(n_alive) + " tensors cross the border");
        }
        return t;
    };
    input_ = range_.il_first == 0 ? nullptr : border(range_.il_first);
    output_ = is_last_ ? result_->t_logits : border(range_.il_last);
    if (!output_) {
        throw StageError("architecture '" + model_.arch() + "' gives no logits");
    }
    const int32_t begin = input_ ? live.position(input_) + 1 : 0;
    const int32_t end = is_last_ ? live.n_nodes() : live.position(output_);
    if (input_) {
        make_leaf(input_);
    }

    // needed are the nodes that the output depends on, and the writes into the stage's own memory
    std::unordered_set<const ggml_tensor *> needed;
    std::vector<ggml_tensor *> open;
    const auto want = [&](ggml_tensor * t) {
        if (t && t->op != GGML_OP_NONE && needed.insert(t).second) {
            open.push_back(t);
        }
    };
    want(output_);
    for (int32_t i = 0; i < live.n_nodes(); ++i) {
        if (writes_memory(live.node(i)) && owns_write(live.node(i), i >= begin && i < end, has_guests)) {
            want(live.node(i));
        }
    }
    while (!open.empty()) {
        ggml_tensor * t = open.back();
        open.pop_back();
        for (ggml_tensor * src : t->src) {
            want(src);
        }
        want(t->view_src);
    }
    // keep the original order: attention reads views of the cache, and no edge of the graph says that the write into
    // the cache must come first
    for (int32_t i = 0; i < live.n_nodes(); ++i) {
        if (needed.count(live.node(i))) {
            nodes_.push_back(live.node(i));
        }
    }
    ggml_set_output(output_);
}

// Whether a write belongs to this stage. In general the place of the write in the graph does not tell: llama.cpp clears
// the recurrent state of a layer before it computes the layer before. So the layer of the memory decides. When layers
// of other stages are guests in this stage's memory, they write into the same tensors. Such memories are KV caches,
// where each layer writes between its own borders; so there the place of the write decides too
bool CutGraph::owns_write(const ggml_tensor * node, bool between_borders, bool has_guests) const {
    if (range_.il_first == 0 && is_last_) {
        return true;
    }
    const ggml_tensor * memory = memory_of(node);
    const int32_t il = memory_layer(memory);
    if (il < 0) {
        throw StageError("architecture '" + model_.arch() + "' writes into a memory of no known layer (" +
                         memory->name + "): it cannot be cut");
    }
    return owns(il) && (!has_guests || between_borders);
}

// throws if a node of the cut graph is the attention of a layer outside the stage
void CutGraph::check_foreign() const {
    for (const ggml_tensor * node : nodes_) {
        const int32_t il = layer_of(node);
        if (il >= 0 && !owns(il) && (node->op == GGML_OP_FLASH_ATTN_EXT || node->op == GGML_OP_SOFT_MAX)) {
            throw StageError(stage_name(range_) + " of architecture '" + model_.arch() + "' would need " + node->name +
                             " of another stage");
        }
    }
    for (const auto & fused : result_->get_fused_nodes()) {
        if (!owns(fused.il) && std::find(nodes_.begin(), nodes_.end(), fused.tensor) != nodes_.end()) {
            throw StageError(stage_name(range_) + " of architecture '" + model_.arch() +
                             "' would need the attention of layer " + std::to_string(fused.il));
        }
    }
}

// throws if the cut graph reads or writes the memory of a layer outside the stage: the stage of that layer runs over
// other rows, in its own cache
void CutGraph::check_memory() const {
    if (range_.il_first == 0 && is_last_) {
        return;
    }
    const auto check = [&](const ggml_tensor * t, const char * would) {
        const ggml_tensor * memory = t ? memory_of(t) : nullptr;
        const int32_t il = memory ? memory_layer(memory) : -1;
        if (memory && !owns(il)) {
            throw StageError(stage_name(range_) + " of architecture '" + model_.arch() + "' would " + would +
                             " the memory of layer " + std::to_string(il) + " (" + memory->name +
                             "): layers on both sides of the border share it");
        }
    };
    for (const ggml_tensor * node : nodes_) {
        check(writes_memory(node) ? node : nullptr, "write");
        for (const ggml_tensor * src : node->src) {
            check(src, "read");
        }
    }
}

// checks the choice of owns_write when there are guests: each tensor of the stage's own layers must be written once
void CutGraph::check_written_once(ggml_cgraph * whole) const {
    std::unordered_map<const ggml_tensor *, int32_t> n_writes;
    for (int i = 0; i < ggml_graph_n_nodes(whole); ++i) {
        const ggml_tensor * node = ggml_graph_node(whole, i);
        if (writes_memory(node) && owns(memory_layer(memory_of(node)))) {
            n_writes[memory_of(node)] += 0;
        }
    }
    for (const ggml_tensor * node : nodes_) {
        if (writes_memory(node)) {
            ++n_writes[memory_of(node)];
        }
    }
    for (const auto & [memory, n] : n_writes) {
        if (n != 1) {
            throw StageError(stage_name(range_) + " of architecture '" + model_.arch() + "' write " +
                             std::to_string(n) + " times into " + memory->name + ", expected once");
        }
    }
}

// rows of different kinds may share a ubatch only if every input is of a known class and holds no content of the prompt
void CutGraph::find_prompt_reads() {
    std::unordered_set<const ggml_tensor *> content;
    for (const auto & input : result_->inputs) {
        if (const auto * embd = dynamic_cast<const llm_graph_input_embd *>(input.get())) {
            content.insert({embd->tokens, embd->embd});
            continue;
        }
        const bool known = dynamic_cast<const llm_graph_input_pos *>(input.get()) ||
                           dynamic_cast<const llm_graph_input_attn_kv *>(input.get()) ||
                           dynamic_cast<const llm_graph_input_attn_kv_iswa *>(input.get()) ||
                           dynamic_cast<const llm_graph_input_out_ids *>(input.get());
        if (!known) {
            reads_prompt_ = true;
            return;
        }
    }
    content.erase(nullptr);
    reads_prompt_ = std::any_of(nodes_.begin(), nodes_.end(), [&](const ggml_tensor * node) {
        return content.count(node->view_src) || std::any_of(std::begin(node->src), std::end(node->src),
                                                            [&](const ggml_tensor * s) { return content.count(s); });
    });
}

std::vector<ggml_tensor *> CutGraph::input_leaves() const {
    std::vector<ggml_tensor *> leaves;
    ggml_context * ctx = result_->get_ctx();
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        if (is_input_leaf(t)) {
            leaves.push_back(t);
        }
    }
    return leaves;
}

std::string CutGraph::signature() const {
    std::string out;
    for (const ggml_tensor * node : nodes_) {
        out += ggml_op_name(node->op);
        for (const ggml_tensor * src : node->src) {
            if (src && src->op == GGML_OP_NONE && src->buffer) {  // a weight or the cache
                out += ' ';
                out += src->name;
            }
        }
        out += '\n';
    }
    return out;
}

ggml_tensor * CutGraph::named(const std::string & name) const {
    const auto it = names_.find(name);
    return it == names_.end() ? nullptr : it->second;
}

ggml_cgraph * assemble(ggml_context * ctx, size_t max_nodes, const std::vector<const CutGraph *> & parts) {
    ggml_cgraph * graph = ggml_new_graph_custom(ctx, max_nodes, false);
    for (const CutGraph * part : parts) {
        for (ggml_tensor * leaf : part->input_leaves()) {
            if (part == parts.front() || leaf != part->input()) {
                ggml_build_forward_expand(graph, leaf);
            }
        }
        for (ggml_tensor * node : part->nodes()) {
            ggml_build_forward_expand(graph, node);
        }
    }
    return graph;
}

Borders find_borders(const Model & model, const GraphRequest & request) {
    Borders borders;
    for (int32_t il = 1; il < model.n_layer(); ++il) {
        try {
            for (const StageRange range : {StageRange{0, il}, StageRange{il, model.n_layer()}}) {
                ggml_backend_sched_reset(request.sched);
                CutGraph(model, range).build(request);
            }
            borders.legal.push_back(il);
        } catch (const StageError & e) {
            borders.why_not[il] = e.what();
        }
    }
    return borders;
}

}  // namespace atp
