#include "score.h"

#include <cstring>

#include "errors.h"
#include "graph_cut.h"
#include "llama_private.h"
#include "model.h"

namespace atp {

namespace {

ggml_tensor * flash_attention(const CutGraph & cut, int32_t il) {
    for (const auto & fused : cut.result().get_fused_nodes()) {
        if (fused.op == LLM_FUSED_OP_FLASH_ATTN && fused.il == il) {
            return fused.tensor;
        }
    }
    return nullptr;
}

ggml_tensor * soft_max(const CutGraph & cut, int32_t il) {
    return cut.named("kq_soft_max-" + std::to_string(il));
}

// rows [begin, end) of dimension 1, all heads: a view
ggml_tensor * row_view(ggml_context * ctx, ggml_tensor * t, int32_t begin, int32_t end) {
    return ggml_view_4d(ctx, t, t->ne[0], end - begin, t->ne[2], t->ne[3], t->nb[1], t->nb[2], t->nb[3],
                        begin * t->nb[1]);
}

// softmax(q k^T) of a flash attention node, for some rows: [n_kv, n_rows, n_head]
ggml_tensor * attention_of(ggml_context * ctx, ggml_tensor * fa, int32_t begin, int32_t end) {
    float params[3];  // scale, max_bias, logit_softcap
    std::memcpy(params, fa->op_params, sizeof(params));
    float scale = params[0];
    const float max_bias = params[1];
    const float softcap = params[2];
    ggml_tensor * q = row_view(ctx, fa->src[0], begin, end);
    ggml_tensor * mask = fa->src[3] ? row_view(ctx, fa->src[3], begin, end) : nullptr;
    ggml_tensor * kq = ggml_mul_mat(ctx, fa->src[1], q);
    ggml_prec_set_acc(kq, GGML_PREC_F32);
    if (softcap != 0.0f) {
        // as the node computes it: softcap * tanh(scale * q k / softcap), then a softmax without a scale
        kq = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, kq, scale / softcap)), softcap);
        scale = 1.0f;
    }
    kq = ggml_soft_max_ext(ctx, kq, mask, scale, max_bias);
    ggml_soft_max_add_sinks(kq, fa->src[4]);
    return kq;
}

template <typename Input>
ggml_tensor * index_leaf(const llm_graph_input_i * input) {
    const auto * typed = dynamic_cast<const Input *>(input);
    return typed ? typed->get_k_idxs() : nullptr;
}

}  // namespace

int32_t score_layer(const CutGraph & cut) {
    const llama_hparams & hp = cut.model().llama()->hparams;
    for (int32_t il = cut.range().il_last - 1; il >= cut.range().il_first; --il) {
        if (!hp.is_swa(il) && (flash_attention(cut, il) || soft_max(cut, il))) {
            return il;
        }
    }
    return -1;
}

ScoreTap add_score(ggml_context * ctx, ggml_cgraph * graph, const CutGraph & cut, int32_t row_begin, int32_t row_end) {
    const int32_t il = score_layer(cut);
    if (il < 0) {
        throw PlanError(
            "layers " + std::to_string(cut.range().il_first) + " to " + std::to_string(cut.range().il_last - 1) +
            " hold no full-attention layer to score from; move the cut behind one, or use a policy without scores");
    }
    ggml_tensor * fa = flash_attention(cut, il);
    ggml_tensor * p =
        fa ? attention_of(ctx, fa, row_begin, row_end) : row_view(ctx, soft_max(cut, il), row_begin, row_end);
    const int64_t n_kv = p->ne[0];
    const int64_t n_head = p->ne[2];
    // [n_kv, n_rows, n_head] -> [1, n_kv]: sum over rows and heads, then the mean over heads
    ggml_tensor * flat = ggml_reshape_2d(ctx, ggml_cont(ctx, p), n_kv, p->ne[1] * n_head);
    ggml_tensor * sum = ggml_sum_rows(ctx, ggml_cont(ctx, ggml_transpose(ctx, flat)));
    sum = ggml_scale(ctx, sum, 1.0f / static_cast<float>(n_head));
    ggml_set_output(sum);
    ggml_build_forward_expand(graph, sum);
    return {sum, row_end - row_begin};
}

std::vector<int32_t> read_cells(const CutGraph & cut) {
    ggml_tensor * leaf = nullptr;
    for (const auto & input : cut.result().inputs) {
        const llm_graph_input_i * in = input.get();
        if (const auto * hybrid = dynamic_cast<const llm_graph_input_mem_hybrid *>(in)) {
            in = hybrid->get_attn();
        }
        leaf = leaf ? leaf : index_leaf<llm_graph_input_attn_kv>(in);
        leaf = leaf ? leaf : index_leaf<llm_graph_input_attn_kv_iswa>(in);
        leaf = leaf ? leaf : index_leaf<llm_graph_input_attn_k>(in);
    }
    if (!leaf) {
        throw PlanError("architecture '" + cut.model().arch() +
                        "' keeps its attention memory in a way that cannot be " +
                        "scored; use a policy without scores");
    }
    std::vector<int64_t> wide(ggml_nelements(leaf));
    ggml_backend_tensor_get(leaf, wide.data(), 0, ggml_nbytes(leaf));
    return {wide.begin(), wide.end()};
}

}  // namespace atp
