#include "decoder/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <iterator>
#include <numeric>
#include <set>
#include <utility>

#include "base/errors.h"
#include "llama/llama_private.h"
#include "llama/log_capture.h"
#include "llama/model.h"
#include "stages/liveness.h"

namespace atp {

struct Reference::Watch {
    std::map<int32_t, std::vector<int32_t>> hidden;  // after -> rows; in a fresh single sequence, cell = row
    std::set<std::string> names;
    std::map<std::string, std::vector<Captured>> captured;
    std::set<std::pair<const ggml_tensor *, int32_t>> done;  // masks (with their `after`) that are done in this graph
    std::set<const ggml_tensor *> computed;                  // nodes of this graph that have their values
    std::vector<const ggml_tensor *> asked;                  // nodes that get their values next
    std::vector<char> raw;
    std::exception_ptr raised;

    bool see(ggml_tensor * t, bool ask);
    void hide_in(ggml_tensor * mask, int32_t after, const std::vector<int32_t> & rows);
};

namespace {

float mask_value(const ggml_tensor * mask, const char * at) {
    return mask->type == GGML_TYPE_F16 ? ggml_fp16_to_fp32(*reinterpret_cast<const ggml_fp16_t *>(at))
                                       : *reinterpret_cast<const float *>(at);
}

void block(const ggml_tensor * mask, char * at) {
    if (mask->type == GGML_TYPE_F16) {
        *reinterpret_cast<ggml_fp16_t *>(at) = ggml_fp32_to_fp16(-INFINITY);
    } else {
        *reinterpret_cast<float *>(at) = -INFINITY;
    }
}

// writes -inf into the columns of the hidden cells; mask is [n_kv, n_rows], F16 or F32. A row that would then see no
// cell is itself hidden, because a live row sees itself. Such a row is left unchanged: otherwise its softmax would be
// NaN, and 0 * NaN would spoil the sums of other rows
void hide_columns(ggml_tensor * mask, const std::vector<int32_t> & cells, std::vector<char> & raw) {
    raw.resize(ggml_nbytes(mask));
    ggml_backend_tensor_get(mask, raw.data(), 0, raw.size());
    std::vector<char> is_hidden(mask->ne[0], 0);
    for (const int32_t cell : cells) {
        if (cell < mask->ne[0]) {  // later rows of the prompt have no column yet
            is_hidden[cell] = 1;
        }
    }
    for (int64_t r = 0; r < mask->ne[1]; ++r) {
        char * row = raw.data() + r * mask->nb[1];
        bool sees = false;
        for (int64_t cell = 0; cell < mask->ne[0] && !sees; ++cell) {
            sees = !is_hidden[cell] && std::isfinite(mask_value(mask, row + cell * mask->nb[0]));
        }
        for (int64_t cell = 0; cell < mask->ne[0] && sees; ++cell) {
            if (is_hidden[cell]) {
                block(mask, row + cell * mask->nb[0]);
            }
        }
    }
    ggml_backend_tensor_set(mask, raw.data(), 0, raw.size());
}

ggml_tensor * mask_of(const ggml_tensor * t) {
    return t->op == GGML_OP_FLASH_ATTN_EXT ? t->src[3] : t->op == GGML_OP_SOFT_MAX ? t->src[1] : nullptr;
}

// the layer of an attention node, from the name of the node or of its queries; -1 when no name has a layer number
int32_t layer_of_attention(const ggml_tensor * t) {
    int32_t il = layer_of(t);
    while (il < 0 && t->src[0]) {
        t = t->src[0];
        il = layer_of(t);
    }
    return il;
}

Captured copy_of(const ggml_tensor * t) {
    if (t->type != GGML_TYPE_F32 && t->type != GGML_TYPE_F16) {
        throw StageError(std::string("only F32 and F16 tensors can be captured, ") + t->name + " is " +
                         ggml_type_name(t->type));
    }
    Captured c;
    c.shape.assign(t->ne, t->ne + GGML_MAX_DIMS);
    c.data.resize(ggml_nelements(t));
    std::vector<char> raw(ggml_nbytes(t));
    ggml_backend_tensor_get(t, raw.data(), 0, raw.size());
    size_t k = 0;
    for (int64_t w = 0; w < t->ne[3]; ++w) {
        for (int64_t z = 0; z < t->ne[2]; ++z) {
            for (int64_t y = 0; y < t->ne[1]; ++y) {
                for (int64_t x = 0; x < t->ne[0]; ++x) {
                    const char * at = raw.data() + x * t->nb[0] + y * t->nb[1] + z * t->nb[2] + w * t->nb[3];
                    c.data[k++] = t->type == GGML_TYPE_F16
                                      ? ggml_fp16_to_fp32(*reinterpret_cast<const ggml_fp16_t *>(at))
                                      : *reinterpret_cast<const float *>(at);
                }
            }
        }
    }
    return c;
}

}  // namespace

// no exception may cross llama.cpp: it is stored here, and thrown again when llama_decode has returned
bool Reference::on_eval(ggml_tensor * t, bool ask, void * data) {
    Watch & w = *static_cast<Watch *>(data);
    try {
        return w.see(t, ask);
    } catch (...) {
        w.raised = std::current_exception();
        return false;
    }
}

// hides `rows` in `mask`, if its values are computed, else in those masks that `mask` will be computed from: sparse
// attention computes one mask for each layer
void Reference::Watch::hide_in(ggml_tensor * mask, int32_t after, const std::vector<int32_t> & rows) {
    std::set<const ggml_tensor *> seen;
    std::vector<ggml_tensor *> open = {mask};
    while (!open.empty()) {
        ggml_tensor * t = open.back();
        open.pop_back();
        if (!t || !seen.insert(t).second) {
            continue;
        }
        if (t->op != GGML_OP_NONE && !computed.count(t)) {
            open.insert(open.end(), std::begin(t->src), std::end(t->src));
        } else if ((t == mask || std::strstr(t->name, "kq_mask")) && t->ne[0] == mask->ne[0] &&
                   done.insert({t, after}).second) {
            hide_columns(t, rows, raw);
        }
    }
}

bool Reference::Watch::see(ggml_tensor * t, bool ask) {
    const std::string name = t->name;
    ggml_tensor * mask = hidden.empty() ? nullptr : mask_of(t);
    if (ask) {
        // a group of nodes ends at each attention, so every earlier node that uses this mask has been computed
        for (const auto & [after, rows] : hidden) {
            if (mask && after <= layer_of_attention(t)) {
                hide_in(mask, after, rows);
            }
        }
        asked.push_back(t);
        return mask || names.count(name) > 0;
    }
    computed.insert(asked.begin(), asked.end());
    asked.clear();
    if (names.count(name)) {
        captured[name].push_back(copy_of(t));
    }
    return true;
}

Reference::Reference(const Model & model, int32_t n_ctx, int32_t n_ubatch)
    : model_(model), n_ubatch_(n_ubatch), watch_(new Watch), ctx_(model.new_context(n_ctx, n_ubatch)) {}

Reference::~Reference() = default;

void Reference::hide(int32_t after, std::vector<int32_t> rows) {
    if (std::any_of(rows.begin(), rows.end(), [](int32_t row) { return row < 0; })) {
        throw StageError("rows to hide are indices into the sequence, 0 and up");
    }
    watch_->hidden[after] = std::move(rows);
    capture({watch_->names.begin(), watch_->names.end()});
}

void Reference::capture(std::vector<std::string> names) {
    watch_->names = {names.begin(), names.end()};
    if (watch_->names.empty() && watch_->hidden.empty()) {
        return;
    }
    // the callback splits the graph at every node that it asks for, so it is installed only when it is needed
    const int32_t n_ctx = static_cast<int32_t>(llama_n_ctx(ctx_.get()));
    ctx_ = model_.new_context(n_ctx, n_ubatch_, &Reference::on_eval, watch_.get());
}

const std::map<std::string, std::vector<Captured>> & Reference::captured() const {
    return watch_->captured;
}

void Reference::clear() {
    llama_memory_clear(llama_get_memory(ctx_.get()), false);
    watch_->captured.clear();
}

void Reference::run(const Sequence & seq, const Segment & segment, bool all_logits, std::vector<float> & logits) {
    const int32_t n = static_cast<int32_t>(segment.end - segment.begin);
    if (!segment.causal && n > n_ubatch_) {
        throw StageError("an image of " + std::to_string(n) + " tokens that see each other needs n_ubatch >= " +
                         std::to_string(n) + ", got " + std::to_string(n_ubatch_));
    }
    const int32_t n_pos = segment.image ? model_.n_pos_per_embd() : 1;
    llama_set_causal_attn(ctx_.get(), segment.causal);
    for (int32_t done = 0; done < n; done += n_ubatch_) {
        const int32_t count = std::min(n_ubatch_, n - done);
        std::vector<llama_token> tokens(count);
        std::vector<llama_pos> pos(static_cast<size_t>(count) * n_pos);
        std::vector<int32_t> n_seq(count, 1);
        llama_seq_id zero = 0;
        std::vector<llama_seq_id *> seq_ids(count, &zero);
        std::vector<int8_t> output(count, 0);
        const Row * rows = &seq.rows[segment.begin + done];
        for (int32_t i = 0; i < count; ++i) {
            tokens[i] = rows[i].token;
            for (int32_t s = 0; s < n_pos; ++s) {
                pos[static_cast<size_t>(s) * count + i] = rows[i].pos[s];
            }
            output[i] = all_logits || segment.begin + done + i + 1 == seq.rows.size() ? 1 : 0;
        }
        llama_batch batch = {};
        batch.n_tokens = count;
        batch.token = segment.image ? nullptr : tokens.data();
        batch.embd =
            segment.image ? const_cast<float *>(&seq.embd[static_cast<size_t>(rows->index) * seq.n_embd_inp]) : nullptr;
        batch.pos = pos.data();
        batch.n_seq_id = n_seq.data();
        batch.seq_id = seq_ids.data();
        batch.logits = output.data();
        watch_->done.clear();
        watch_->computed.clear();
        watch_->asked.clear();
        const int32_t status = llama_decode(ctx_.get(), batch);
        if (watch_->raised) {
            std::rethrow_exception(std::exchange(watch_->raised, nullptr));
        }
        if (status != 0) {
            throw StageError("llama_decode failed on " + std::to_string(count) + " rows of the reference");
        }
        for (int32_t i = 0; i < count; ++i) {
            if (output[i]) {
                const float * row = llama_get_logits_ith(ctx_.get(), i);
                logits.insert(logits.end(), row, row + model_.n_vocab());
            }
        }
    }
}

std::vector<float> Reference::prefill(const Sequence & seq, bool all_logits) {
    if (!seq.images.empty() && seq.n_embd_inp != model_.n_embd_inp()) {
        throw ImageError("the image tokens are " + std::to_string(seq.n_embd_inp) + " wide, this model takes " +
                         std::to_string(model_.n_embd_inp()));
    }
    clear();
    std::vector<int32_t> live(seq.rows.size());
    std::iota(live.begin(), live.end(), 0);
    std::vector<float> logits;
    for (const Segment & segment : segments(seq, live)) {
        run(seq, segment, all_logits, logits);
    }
    llama_set_causal_attn(ctx_.get(), true);
    return logits;
}

std::vector<float> Reference::decode(int32_t token, int32_t pos) {
    Sequence one;
    one.n_pos = pos;
    one.add_text(token);
    std::vector<float> logits;
    run(one, {0, 1, false, true}, true, logits);
    return logits;
}

void Reference::load_lora(const std::string & path) const {
    log_capture::clear();
    const llama_adapter_lora_ptr adapter(llama_adapter_lora_init(model_.llama(), path.c_str()));
    if (!adapter) {
        throw ModelError("llama.cpp cannot load " + path + " as a LoRA adapter: " + log_capture::last_error());
    }
}

}  // namespace atp
