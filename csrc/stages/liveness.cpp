#include "stages/liveness.h"

#include <cstdlib>
#include <cstring>

#include "llama/llama_private.h"

namespace atp {

int32_t layer_of(const ggml_tensor * node) {
    const char * dash = std::strrchr(node->name, '-');
    if (!dash || dash[1] < '0' || dash[1] > '9') {
        return -1;
    }
    char * end = nullptr;
    const long il = std::strtol(dash + 1, &end, 10);
    return *end == '\0' || *end == ' ' ? static_cast<int32_t>(il) : -1;
}

const ggml_tensor * memory_of(const ggml_tensor * t) {
    const ggml_tensor * whole = t->view_src ? t->view_src : t;
    const bool outlives =
        whole->buffer && ggml_backend_buffer_get_usage(whole->buffer) != GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
    return outlives ? whole : nullptr;
}

int32_t memory_layer(const ggml_tensor * memory) {
    const std::string name = memory->name;
    const size_t mark = name.rfind("_l");
    const size_t digits = mark == std::string::npos ? mark : mark + 2;
    const bool numbered = digits < name.size() && name.find_first_not_of("0123456789", digits) == std::string::npos;
    return numbered ? std::atoi(name.c_str() + digits) : layer_of(memory);
}

bool writes_memory(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return false;
        default:  // an operation whose result is a view writes in place
            return memory_of(node) != nullptr;
    }
}

namespace {

// -1 for nodes that are a memory or a view of a memory: their place in the graph and their name tell no layer. A
// recurrent state may be read before the layer before is computed, and some architectures rename the tensor of a memory
// only while they build their first graph
int32_t layer_of_computed(const ggml_tensor * node) {
    return memory_of(node) ? -1 : layer_of(node);
}

}  // namespace

Liveness::Liveness(ggml_cgraph * graph) {
    const int n = ggml_graph_n_nodes(graph);
    nodes_.reserve(n);
    last_use_.assign(n, -1);
    depends_on_layer_.assign(n, 0);
    for (int i = 0; i < n; ++i) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        nodes_.push_back(node);
        position_[node] = i;
        bool layered = layer_of_computed(node) >= 0;
        for (ggml_tensor * src : node->src) {
            const int32_t at = src ? position(src) : -1;
            if (at < 0) {
                continue;
            }
            layered |= depends_on_layer_[at] != 0;
            last_use_[at] = i;
            last_use_[position(root(src))] = i;
        }
        depends_on_layer_[i] = layered ? 1 : 0;
    }
}

int32_t Liveness::position(const ggml_tensor * node) const {
    const auto it = position_.find(node);
    return it == position_.end() ? -1 : it->second;
}

ggml_tensor * Liveness::root(ggml_tensor * t) const {
    while (t->view_src && position(t->view_src) >= 0) {
        t = t->view_src;
    }
    return t;
}

// whether node i, at the border before node `at`, holds a value that a layer computed and that is still needed
bool Liveness::carries(int32_t i, int32_t at) const {
    return depends_on_layer_[i] && last_use_[i] >= at && !nodes_[i]->view_src && !writes_memory(nodes_[i]);
}

ggml_tensor * Liveness::border(int32_t il, int32_t * n_alive) const {
    int32_t first_of_next = -1;
    int32_t first_of_previous = 0;
    for (int32_t i = 0; i < n_nodes() && first_of_next < 0; ++i) {
        const int32_t layer = layer_of_computed(nodes_[i]);
        if (layer == il) {
            first_of_next = i;
        }
        if (layer == il - 1 && first_of_previous == 0) {
            first_of_previous = i;
        }
    }
    for (int32_t at = first_of_next; at > first_of_previous; --at) {
        int32_t n = 0;
        ggml_tensor * carrier = nullptr;
        for (int32_t i = 0; i < at; ++i) {
            if (carries(i, at)) {
                ++n;
                carrier = nodes_[i];
            }
        }
        if (n_alive && at == first_of_next) {
            *n_alive = n;
        }
        if (n == 1) {
            return carrier;
        }
    }
    return nullptr;
}

}  // namespace atp
