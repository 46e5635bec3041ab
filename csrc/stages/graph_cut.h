// Cuts the graph an architecture builds for all layers down to the layers of one stage. No layer is reimplemented.
//
// In:  a ubatch placed in the stage's cache, the range [il_first, il_last).
// Out: a graph from the hidden state entering il_first ([..., n_tokens], an input leaf; none for il_first = 0) to the
//      hidden state leaving il_last - 1, or to the logits for the last stage.
// Borders are found by liveness: the last point before the next layer's first node where exactly one tensor that
// depends on a layer is still needed. A write into a memory belongs to the stage whose layer owns the written tensor.
// Knows nothing of images and policies. Throws StageError when a border does not exist, or when the stage would need
// the attention or the memory of another stage.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/borders.h"
#include "base/stage_range.h"
#include "stages/graph_request.h"

struct ggml_tensor;
struct ggml_cgraph;
struct ggml_context;
struct llm_graph_params;
class llm_graph_result;

namespace atp {

class Model;

class CutGraph {
  public:
    CutGraph(const Model & model, StageRange range);
    ~CutGraph();
    CutGraph(const CutGraph &) = delete;
    CutGraph & operator=(const CutGraph &) = delete;

    // builds the whole graph, then cuts it; the graph of an earlier build is freed
    void build(const GraphRequest & request);

    // true when the present graph also fits this request; then the inputs are bound to the new memory context
    bool can_reuse(const GraphRequest & request);

    ggml_tensor * input() const { return input_; }    // nullptr for the first stage
    ggml_tensor * output() const { return output_; }  // hidden state, or logits [n_vocab, n_outputs]
    bool is_last() const { return is_last_; }

    // nodes of this stage in their original order, and every leaf that set_inputs fills
    const std::vector<ggml_tensor *> & nodes() const { return nodes_; }
    std::vector<ggml_tensor *> input_leaves() const;

    // operations and weights of the stage, as text: two graphs with the same signature compute the same function
    std::string signature() const;

    // the node or leaf that llama.cpp named `name`, e.g. "kq_soft_max-3"; nullptr when there is none
    ggml_tensor * named(const std::string & name) const;
    llm_graph_result & result() const { return *result_; }
    const Model & model() const { return model_; }
    StageRange range() const { return range_; }

    // true when the stage reads the prompt's tokens or embeddings (first stage, per-layer inputs, deepstack): then text
    // and image rows must not share a ubatch
    bool reads_prompt() const { return reads_prompt_; }

  private:
    llm_graph_params graph_params(const GraphRequest & request);
    void cut(ggml_cgraph * whole, bool has_guests);
    bool owns(int32_t il) const { return il >= range_.il_first && (is_last_ || il < range_.il_last); }
    bool owns_write(const ggml_tensor * node, bool between_borders, bool has_guests) const;
    void check_foreign() const;
    void check_memory() const;
    void check_written_once(ggml_cgraph * whole) const;
    void find_prompt_reads();

    const Model & model_;
    StageRange range_;
    bool is_last_ = false;
    bool reads_prompt_ = true;
    std::unique_ptr<llm_graph_result> result_;
    std::unordered_map<std::string, ggml_tensor *> names_;
    std::vector<ggml_tensor *> nodes_;
    ggml_tensor * input_ = nullptr;
    ggml_tensor * output_ = nullptr;
};

// the parts as one graph ready to allocate: leaves that set_inputs fills, then nodes in order. The hidden state that
// enters the first part is a leaf too. The hidden states that enter the other parts must be connected to the part
// before
ggml_cgraph * assemble(ggml_context * ctx, size_t max_nodes, const std::vector<const CutGraph *> & parts);

// where this graph can be cut
Borders find_borders(const Model & model, const GraphRequest & request);

}  // namespace atp
