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

// the layer number at the end of a node's name ("-7", also "-7 (view)"); -1 when the name has none
int32_t layer_of(const ggml_tensor * node);

// the tensor of a memory (a KV cache, a recurrent state), if `t` is such a tensor or a view of one; else nullptr. The
// tensor of a memory outlives the graph and holds no weights
const ggml_tensor * memory_of(const ggml_tensor * t);

// the layer a tensor of a memory belongs to, by its name ("cache_k_l7", or renamed "ssm_states-7"); -1 when unknown
int32_t memory_layer(const ggml_tensor * memory);

// true for a node that writes into the tensor of a memory
bool writes_memory(const ggml_tensor * node);

class Liveness {
  public:
    explicit Liveness(ggml_cgraph * graph);

    // the only tensor that goes from layers < il to layers >= il; nullptr when several tensors do. *n_alive gets the
    // number of these tensors
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
