#include "stages/batcher.h"

#include <algorithm>
#include <cstring>

#include "base/errors.h"
#include "llama/llama_private.h"
#include "llama/log_capture.h"
#include "llama/model.h"

namespace atp {

namespace {

constexpr uint32_t n_pos_min = 2;  // with fewer, the allocator refuses gaps between positions

// memory layout of a tensor with tokens in one dimension: each token has `inner` contiguous floats, `outer` times
struct TokenLayout {
    size_t inner = 1;
    size_t outer = 1;
};

TokenLayout token_layout(const ggml_tensor * t, int token_dim, uint32_t n_tokens) {
    if (t->ne[token_dim] != static_cast<int64_t>(n_tokens)) {
        throw StageError(std::string("the hidden state ") + t->name + " holds " + std::to_string(t->ne[token_dim]) +
                         " rows, expected " + std::to_string(n_tokens));
    }
    TokenLayout layout;
    for (int d = 0; d < GGML_MAX_DIMS; ++d) {
        (d < token_dim ? layout.inner : layout.outer) *= d == token_dim ? 1 : static_cast<size_t>(t->ne[d]);
    }
    return layout;
}

void check_hidden(const ggml_tensor * t) {
    if (t->type != GGML_TYPE_F32 || !ggml_is_contiguous(t)) {
        throw StageError(std::string("the hidden state ") + t->name + " is not contiguous F32");
    }
}

}  // namespace

Batcher::Batcher(const Model & model)
    : model_(model),
      allocr_(new llama_batch_allocr(std::max<uint32_t>(n_pos_min, static_cast<uint32_t>(model.n_pos_per_embd())))) {}
Batcher::~Batcher() = default;

std::unique_ptr<llama_memory_context_i> Batcher::place(llama_memory_i & memory, const std::vector<BatchRow> & rows,
                                                       int32_t n_ubatch) {
    const size_t n_embd = model_.n_embd_inp();
    const auto later = [](const BatchRow & a, const BatchRow & b) { return a.seq_id < b.seq_id; };
    const int32_t n_seq = std::max_element(rows.begin(), rows.end(), later)->seq_id + 1;
    llama_batch_ext batch(rows.size(), n_embd, n_embd, n_seq, nullptr, model_.n_vocab(), model_.n_pos_per_embd());
    for (const BatchRow & r : rows) {
        const int32_t i = batch.add_token(r.seq_id);
        if (r.embd) {
            llama_embd embd = {};
            embd.data = r.embd;
            embd.n_rows = 1;
            embd.n_embd = n_embd;
            batch.set_token_embd(i, embd);
        } else {
            batch.set_token_id(i, r.token);
        }
        batch.set_token_pos(i, r.pos);
        batch.set_output(i, r.output);
    }
    log_capture::clear();
    if (!allocr_->init(batch, model_.llama()->vocab, false)) {
        throw StageError("llama.cpp refused the batch: " + log_capture::last_error());
    }
    auto placed = memory.init_batch(*allocr_, n_ubatch, false);
    if (!placed || llama_memory_status_is_fail(placed->get_status())) {
        throw StageError(
            "no room in the KV cache for " + std::to_string(rows.size()) +
            " rows; prefill with a larger n_predict, use a larger context (n_ctx), or fewer sequences at once");
    }
    return placed;
}

llama_ubatch Batcher::dummy(int32_t n_tokens, bool embeddings) {
    llama_ubatch ubatch = allocr_->ubatch_reserve(n_tokens, 1);
    if (embeddings) {
        ubatch.data->embd.assign(static_cast<size_t>(n_tokens) * model_.n_embd_inp(), 0.0f);
        ubatch.embd = ubatch.data->embd.data();
        ubatch.token = nullptr;
    }
    return ubatch;
}

void HiddenRows::start(size_t n_rows) {
    n_rows_ = n_rows;
    row_size_ = 0;
    data_.clear();
}

void HiddenRows::read(const ggml_tensor * tensor, int token_dim, const llama_ubatch & ubatch, size_t first) {
    check_hidden(tensor);
    const TokenLayout layout = token_layout(tensor, token_dim, ubatch.n_tokens);
    if (data_.empty()) {
        row_size_ = layout.inner * layout.outer;
        data_.resize(n_rows_ * row_size_);
    }
    std::vector<float> block(ggml_nelements(tensor));
    ggml_backend_tensor_get(tensor, block.data(), 0, ggml_nbytes(tensor));
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        float * dst = &data_[(first + ubatch.data->batch_idxs[i]) * row_size_];
        for (size_t o = 0; o < layout.outer; ++o) {
            std::memcpy(dst + o * layout.inner, &block[(o * ubatch.n_tokens + i) * layout.inner],
                        layout.inner * sizeof(float));
        }
    }
}

void HiddenRows::write(ggml_tensor * tensor, int token_dim, const llama_ubatch & ubatch, size_t first) const {
    check_hidden(tensor);
    const TokenLayout layout = token_layout(tensor, token_dim, ubatch.n_tokens);
    std::vector<float> block(ggml_nelements(tensor));
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const float * src = &data_[(first + ubatch.data->batch_idxs[i]) * row_size_];
        for (size_t o = 0; o < layout.outer; ++o) {
            std::memcpy(&block[(o * ubatch.n_tokens + i) * layout.inner], src + o * layout.inner,
                        layout.inner * sizeof(float));
        }
    }
    ggml_backend_tensor_set(tensor, block.data(), 0, ggml_nbytes(tensor));
}

}  // namespace atp
