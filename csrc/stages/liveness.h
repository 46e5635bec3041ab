// Where a llama.cpp graph can be cut: which tensors are alive at a border between two layers.
//
// In: a graph whose nodes carry layer numbers in their names ("ffn_out-7"). Knows nothing of stages or caches.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

struct ggml_tensor;
struct ggml_cgraph;

namespace atp {

// the layer a node's name ends in ("-7", also "-7 (view)"); -1 when it carries none
int32_t layer_of(const ggml_tensor * node);

// the tensor of a memory (a KV cache, a recurrent state) that `t` is, or is a view of; nullptr when it is neither. Such
// a tensor outlives the graph and holds no weights
const ggml_tensor * memory_of(const ggml_tensor * t);

// the layer a tensor of a memory belongs to, by its name ("cache_k_l7", or renamed "ssm_states-7"); -1 when unknown
int32_t memory_layer(const ggml_tensor * memory);

// true for a node that writes into such a tensor
bool writes_memory(const ggml_tensor * node);

class Liveness {
  public:
    explicit Liveness(ggml_cgraph * graph);

    // the one tensor that carries everything from layers < il to layers >= il; nullptr when several do, with their
    // number in *n_alive
    ggml_tensor * border(int32_t il, int32_t * n_alive = nullptr) const;

    int32_t position(const ggml_tensor * node) const;  // -1 when not in the graph
    int32_t n_nodes() const { return static_cast<int32_t>(nodes_.size()); }
    ggml_tensor * node(int32_t i) const { return nodes_[i]; }

  private:
    ggml_tensor * root(ggml_tensor * t) const;
    bool carries(int32_t i, int32_t at) const;

    std::vector<ggml_tensor *> nodes_;
    std::unordered_map<const ggml_tensor *, int32_t> position_;
    std::vector<int32_t> last_use_;
    std::vector<char> depends_on_layer_;
};

}  // namespace atp
