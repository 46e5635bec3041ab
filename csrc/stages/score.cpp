#include "stages/score.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/errors.h"
#include "llama/llama_private.h"
#include "llama/model.h"
#include "stages/graph_cut.h"

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

// a view of the rows [begin, end), of all heads, of the first n elements each
ggml_tensor * corner_view(ggml_context * ctx, ggml_tensor * t, int64_t n, int64_t begin, int64_t end) {
    return ggml_view_4d(ctx, t, n, end - begin, t->ne[2], t->ne[3], t->nb[1], t->nb[2], t->nb[3], begin * t->nb[1]);
}

// a view of the heads [begin, begin + n) of [n_cells, n_rows, n_head]
ggml_tensor * head_view(ggml_context * ctx, ggml_tensor * t, int64_t begin, int64_t n) {
    return ggml_view_3d(ctx, t, t->ne[0], t->ne[1], n, t->nb[1], t->nb[2], begin * t->nb[2]);
}

// [n_cells, n_rows, n_head] -> [n_cells, n_rows], by halves: each sum reads values that are still in the CPU's cache
ggml_tensor * sum_over_heads(ggml_context * ctx, ggml_tensor * p) {
    const int64_t n = p->ne[2];
    if (n == 1) {
        return p;
    }
    const int64_t half = n / 2;
    ggml_tensor * sum = ggml_add(ctx, head_view(ctx, p, 0, half), head_view(ctx, p, half, half));
    sum = sum_over_heads(ctx, sum);
    return n % 2 ? ggml_add(ctx, sum, head_view(ctx, p, n - 1, 1)) : sum;
}

// softmax(q k^T) of a flash attention node, [n_cells, n_rows, n_head], for some rows; no row may see a cell from
// n_cells on
ggml_tensor * soft_max_of(ggml_context * ctx, ggml_tensor * fa, int64_t n_cells, int32_t begin, int32_t end) {
    float params[3];  // scale, max_bias, logit_softcap
    std::memcpy(params, fa->op_params, sizeof(params));
    float scale = params[0];
    const float max_bias = params[1];
    const float softcap = params[2];
    ggml_tensor * q = corner_view(ctx, fa->src[0], fa->src[0]->ne[0], begin, end);
    ggml_tensor * k = corner_view(ctx, fa->src[1], fa->src[1]->ne[0], 0, n_cells);
    ggml_tensor * mask = fa->src[3];
    if (mask) {
        // contiguous, because a softmax requires it, and F32, because every head reads it again
        mask = ggml_cast(ctx, corner_view(ctx, mask, n_cells, begin, end), GGML_TYPE_F32);
    }
    const int64_t n_rows = end - begin;
    const int64_t n_head = q->ne[2];
    if (n_rows > 1 && n_head > k->ne[2]) {
        // one product for all heads that share keys: with threads on a CPU, each product costs two barriers
        q = ggml_reshape_3d(ctx, ggml_cont(ctx, q), q->ne[0], n_rows * n_head / k->ne[2], k->ne[2]);
    }
    ggml_tensor * kq = ggml_mul_mat(ctx, k, q);
    ggml_prec_set_acc(kq, GGML_PREC_F32);
    kq = ggml_reshape_3d(ctx, kq, n_cells, n_rows, n_head);
    if (softcap != 0.0f) {
        // the same formula as in the node: softcap * tanh(scale * q k / softcap), then a softmax without a scale
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

namespace {

// the leaf with the cache cell of each row; nullptr where the memory has no such leaf of a known class
ggml_tensor * cells_leaf(const CutGraph & cut) {
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
    return leaf;
}

}  // namespace

std::string why_no_score(const CutGraph & cut) {
    if (score_layer(cut) < 0) {
        return "layers " + std::to_string(cut.range().il_first) + " to " + std::to_string(cut.range().il_last - 1) +
               " hold no full-attention layer to score from; move the cut behind one, or use a policy without scores";
    }
    if (!cells_leaf(cut)) {
        return "architecture '" + cut.model().arch() +
               "' keeps its attention memory in a way that cannot be scored; use a policy without scores";
    }
    return "";
}

namespace {

int32_t layer_or_throw(const CutGraph & cut) {
    const std::string reason = why_no_score(cut);
    if (!reason.empty()) {
        throw PlanError(reason);
    }
    return score_layer(cut);
}

// the attention node of the layer the score is read from: flash attention, or a softmax
ggml_tensor * attention_node(const CutGraph & cut) {
    const int32_t il = layer_or_throw(cut);
    ggml_tensor * fa = flash_attention(cut, il);
    return fa ? fa : soft_max(cut, il);
}

bool is_flash(const ggml_tensor * node) {
    return node->op == GGML_OP_FLASH_ATTN_EXT;
}

// [n_cells, end - begin, n_head], of softmax values
ggml_tensor * attention_of(ggml_context * ctx, ggml_tensor * node, int64_t n_cells, int32_t begin, int32_t end) {
    return is_flash(node) ? soft_max_of(ctx, node, n_cells, begin, end) : corner_view(ctx, node, n_cells, begin, end);
}

int64_t n_cells_of(const ggml_tensor * node) {
    return is_flash(node) ? node->src[1]->ne[1] : node->ne[0];
}

int64_t n_heads_of(const ggml_tensor * node) {
    return is_flash(node) ? node->src[0]->ne[2] : node->ne[2];
}

// the mask, if set_inputs fills it
const ggml_tensor * mask_leaf(const ggml_tensor * node) {
    const ggml_tensor * mask = is_flash(node) ? node->src[3] : node->src[1];
    return mask && mask->op == GGML_OP_NONE && (mask->flags & GGML_TENSOR_FLAG_INPUT) ? mask : nullptr;
}

// number of rows in one block: on a CPU, the map of a block stays in the CPU's cache; on a device, fewer blocks are
// better. There are at most max_blocks blocks, because each block adds nodes
int32_t rows_per_block(const CutGraph & cut, int64_t n_rows, int64_t row_size) {
    constexpr int64_t cache_size = 2 << 20;
    constexpr int64_t device_size = 32 << 20;
    constexpr int64_t max_blocks = 64;
    const int64_t size = cut.model().all_on_cpu() ? cache_size : device_size;
    const int64_t fit = size / (row_size * static_cast<int64_t>(sizeof(float)));
    return static_cast<int32_t>(std::max<int64_t>({1, fit, (n_rows + max_blocks - 1) / max_blocks}));
}

template <typename T>
int32_t last_seen(const T * mask, int64_t n, T blocked) {
    while (n > 0 && mask[n - 1] == blocked) {
        --n;
    }
    return static_cast<int32_t>(n);
}

}  // namespace

ScoreTap add_score(ggml_context * ctx, ggml_cgraph * graph, const CutGraph & cut, int32_t row_begin, int32_t row_end) {
    ggml_tensor * node = attention_node(cut);
    const int64_t n_kv = n_cells_of(node);
    const int64_t n_head = n_heads_of(node);
    ggml_tensor * p = attention_of(ctx, node, n_kv, row_begin, row_end);
    // [n_kv, n_rows, n_head] -> [1, n_kv]: sum over rows and heads, then the mean over heads
    ggml_tensor * flat = ggml_reshape_2d(ctx, ggml_cont(ctx, p), n_kv, p->ne[1] * n_head);
    ggml_tensor * sum = ggml_sum_rows(ctx, ggml_cont(ctx, ggml_transpose(ctx, flat)));
    sum = ggml_scale(ctx, sum, 1.0f / static_cast<float>(n_head));
    ggml_set_output(sum);
    ggml_build_forward_expand(graph, sum);
    return {sum, row_end - row_begin};
}

AttentionMap add_attention_map(ggml_context * ctx, ggml_cgraph * graph, const CutGraph & cut,
                               const std::vector<char> & wanted, const std::vector<int32_t> & reach) {
    ggml_tensor * node = attention_node(cut);
    AttentionMap map;
    map.n_kv = n_cells_of(node);
    map.n_head = n_heads_of(node);
    map.mask = mask_leaf(node);
    const auto n_rows = static_cast<int32_t>(wanted.size());
    const int32_t n_block = rows_per_block(cut, n_rows, map.n_kv * map.n_head);
    for (int32_t begin = 0; begin < n_rows;) {
        if (!wanted[begin]) {
            ++begin;
            continue;
        }
        int32_t end = std::min(n_rows, begin + n_block);
        while (!wanted[end - 1]) {
            --end;
        }
        int64_t n_cells = map.n_kv;
        if (map.mask) {
            constexpr int64_t step = 32;  // whole SIMD registers
            const int64_t last = *std::max_element(reach.begin() + begin, reach.begin() + end);
            n_cells = std::clamp<int64_t>((last + step - 1) / step * step, 1, map.n_kv);
        }
        ggml_tensor * p = attention_of(ctx, node, n_cells, begin, end);
        ggml_tensor * sum = map.n_head == 1 ? ggml_cont(ctx, p) : sum_over_heads(ctx, p);
        ggml_set_output(sum);
        ggml_build_forward_expand(graph, sum);
        map.blocks.push_back({sum, begin});
        begin = end;
    }
    return map;
}

std::vector<int32_t> read_reach(const AttentionMap & map) {
    std::vector<char> raw(ggml_nbytes(map.mask));
    ggml_backend_tensor_get(map.mask, raw.data(), 0, raw.size());
    std::vector<int32_t> reach;
    for (int64_t row = 0; row < map.mask->ne[1]; ++row) {
        const char * at = raw.data() + row * map.mask->nb[1];
        reach.push_back(
            map.mask->type == GGML_TYPE_F16
                ? last_seen(reinterpret_cast<const ggml_fp16_t *>(at), map.n_kv, ggml_fp32_to_fp16(-INFINITY))
                : last_seen(reinterpret_cast<const float *>(at), map.n_kv, -INFINITY));
    }
    return reach;
}

bool covers(const AttentionMap & map, const std::vector<int32_t> & reach) {
    return std::all_of(map.blocks.begin(), map.blocks.end(), [&](const MapBlock & block) {
        const auto first = reach.begin() + block.row_begin;
        return *std::max_element(first, first + block.map->ne[1]) <= block.map->ne[0];
    });
}

std::vector<int32_t> read_cells(const CutGraph & cut) {
    (void) layer_or_throw(cut);
    const ggml_tensor * leaf = cells_leaf(cut);
    std::vector<int64_t> wide(ggml_nelements(leaf));
    ggml_backend_tensor_get(leaf, wide.data(), 0, ggml_nbytes(leaf));
    return {wide.begin(), wide.end()};
}

}  // namespace atp
