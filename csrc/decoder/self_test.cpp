// Decoder::self_test: two prompts through the stages and through plain llama.cpp.
#include <algorithm>

#include "base/errors.h"
#include "decoder/decoder.h"
#include "llama/llama_private.h"
#include "llama/model.h"

namespace atp {

namespace {

// some architectures forbid tokens with such logits; they are so large that all other logits would count for nothing
bool forbidden(float logit) {
    return logit < -1e30f;
}

// squared error divided by the power, of the row where the quotient is largest; NaN if a value is NaN
double worst_row(const std::vector<float> & reference, const std::vector<float> & other, size_t n_vocab) {
    double worst = 0.0;
    for (size_t begin = 0; begin < reference.size(); begin += n_vocab) {
        double error = 0.0;
        double power = 0.0;
        for (size_t i = begin; i < begin + n_vocab; ++i) {
            if (forbidden(reference[i]) && forbidden(other[i])) {
                continue;
            }
            const double d = static_cast<double>(reference[i]) - other[i];
            error += d * d;
            power += static_cast<double>(reference[i]) * reference[i];
        }
        const double relative = power > 0.0 ? error / power : error;
        worst = relative <= worst ? worst : relative;
    }
    return worst;
}

std::vector<int32_t> test_tokens(int32_t first, int32_t n, int32_t n_vocab) {
    std::vector<int32_t> tokens;
    for (int32_t i = first; i < first + n; ++i) {
        tokens.push_back(static_cast<int32_t>((1103515245ULL * (i + 1) + 12345ULL) % n_vocab));
    }
    return tokens;
}

// all logits of `tokens` from position `first` on
void plain_rows(llama_context * ctx, std::vector<int32_t> tokens, int32_t first, size_t n_vocab,
                std::vector<float> & out) {
    const auto n = static_cast<int32_t>(tokens.size());
    std::vector<llama_pos> pos(n);
    std::vector<int8_t> wanted(n, 1);
    for (int32_t i = 0; i < n; ++i) {
        pos[i] = first + i;
    }
    llama_batch batch = llama_batch_get_one(tokens.data(), n);
    batch.pos = pos.data();
    batch.logits = wanted.data();
    if (llama_decode(ctx, batch) != 0) {
        throw StageError("llama_decode failed on the self-test");
    }
    for (int32_t i = 0; i < n; ++i) {
        const float * row = llama_get_logits_ith(ctx, i);
        out.insert(out.end(), row, row + n_vocab);
    }
}

}  // namespace

// The second prompt is shorter: it must not see cells and states that the first prompt has left
std::vector<Decoder::TestPrompt> Decoder::test_prompts() const {
    const int32_t n_first = std::min(10, model_.params().n_ctx);
    const int32_t n_second = std::min(6, model_.params().n_ctx - 1);
    return {{test_tokens(0, n_first, model_.n_vocab()), {}},
            {test_tokens(n_first, n_second, model_.n_vocab()), test_tokens(n_first + n_second, 1, model_.n_vocab())}};
}

std::vector<float> Decoder::plain_logits(const std::vector<TestPrompt> & prompts) const {
    std::vector<float> out;
    const auto n_longest = static_cast<int32_t>(prompts.front().prefill.size());
    const llama_context_ptr plain = model_.new_context(n_longest, n_longest);
    for (const TestPrompt & prompt : prompts) {
        llama_memory_clear(llama_get_memory(plain.get()), true);
        plain_rows(plain.get(), prompt.prefill, 0, model_.n_vocab(), out);
        if (!prompt.decode.empty()) {
            plain_rows(plain.get(), prompt.decode, static_cast<int32_t>(prompt.prefill.size()), model_.n_vocab(), out);
        }
    }
    return out;
}

std::vector<float> Decoder::staged_logits(const std::vector<TestPrompt> & prompts) {
    std::vector<float> out;
    Interrupt never;
    for (const TestPrompt & prompt : prompts) {
        Sequence seq;
        for (const int32_t token : prompt.prefill) {
            seq.add_text(token);
        }
        const std::vector<float> rows =
            prefill(seq, {0, static_cast<int32_t>(prompt.decode.size()), true}, never).logits;
        out.insert(out.end(), rows.begin(), rows.end());
        for (const int32_t token : prompt.decode) {
            const std::vector<float> row = decode({{0, token, seq.n_pos}}, never);
            out.insert(out.end(), row.begin(), row.end());
        }
        remove(0);
    }
    return out;
}

double Decoder::self_test(const std::vector<int32_t> & cuts) {
    const std::vector<TestPrompt> prompts = test_prompts();
    if (plain_logits_.empty()) {
        plain_logits_ = plain_logits(prompts);
    }
    Plan plan;
    for (const int32_t after : cuts) {
        plan.push_back({after, find_policy("none"), 1.0, 0});
    }
    // the plain context is as short as the test, and some RoPE factors depend on the length of the context
    const ContextLength same_length(model_, static_cast<int32_t>(prompts.front().prefill.size()));
    const Plan before = plan_;
    const auto restore = [&] {
        release();
        set_plan(before);
    };
    std::vector<float> staged;
    try {
        set_plan(plan);
        staged = staged_logits(prompts);
    } catch (...) {
        restore();
        throw;
    }
    restore();
    if (staged.size() != plain_logits_.size()) {
        throw StageError("the staged model gives " + std::to_string(staged.size()) + " logits, llama.cpp " +
                         std::to_string(plain_logits_.size()));
    }
    return worst_row(plain_logits_, staged, model_.n_vocab());
}

}  // namespace atp
