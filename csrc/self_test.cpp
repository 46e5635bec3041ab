// Decoder::self_test: a few tokens through the stages and through plain llama.cpp.
#include <algorithm>

#include "decoder.h"
#include "errors.h"
#include "llama_private.h"
#include "model.h"

namespace atp {

namespace {

double nmse(const std::vector<float> & reference, const float * other) {
    double error = 0.0;
    double power = 0.0;
    for (size_t i = 0; i < reference.size(); ++i) {
        const double d = static_cast<double>(reference[i]) - other[i];
        error += d * d;
        power += static_cast<double>(reference[i]) * reference[i];
    }
    return power > 0.0 ? error / power : error;
}

std::vector<int32_t> test_tokens(int32_t n, int32_t n_vocab) {
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < n; ++i) {
        tokens.push_back(static_cast<int32_t>((1103515245ULL * (i + 1) + 12345ULL) % n_vocab));
    }
    return tokens;
}

}  // namespace

std::vector<float> Decoder::plain_logits(std::vector<int32_t> tokens) const {
    std::vector<float> out;
    const auto n = static_cast<int32_t>(tokens.size());
    const llama_context_ptr plain = model_.new_context(n, n);
    for (const auto & [first, count] : {std::pair<int32_t, int32_t>{0, n - 1}, {n - 1, 1}}) {
        if (llama_decode(plain.get(), llama_batch_get_one(tokens.data() + first, count)) != 0) {
            throw StageError("llama_decode failed on the self-test of " + model_.params().path);
        }
        const float * logits = llama_get_logits_ith(plain.get(), -1);
        out.insert(out.end(), logits, logits + model_.n_vocab());
    }
    return out;
}

double Decoder::self_test(const std::vector<int32_t> & cuts) {
    const int32_t n = std::min(33, model_.params().n_ctx);
    if (n < 2) {
        return 0.0;  // no room for a prompt and a step: nothing can be pruned in such a context either
    }
    const std::vector<int32_t> tokens = test_tokens(n, model_.n_vocab());
    const std::vector<float> reference = plain_logits(tokens);
    Plan plan;
    for (const int32_t after : cuts) {
        plan.push_back({after, find_policy("none"), 1.0, 0});
    }
    // the plain context is as short as the test, and some RoPE factors depend on that length
    const ContextLength same_length(model_, n);
    const Plan before = plan_;
    const auto restore = [&] {
        release();
        set_plan(before);
    };
    std::vector<float> staged;
    try {
        set_plan(plan);
        Sequence seq;
        for (int32_t i = 0; i + 1 < n; ++i) {
            seq.add_text(tokens[i]);
        }
        Interrupt never;
        staged = prefill(seq, {0, 1, false}, never).logits;
        const std::vector<float> step = decode({{0, tokens[n - 1], n - 1}}, never);
        staged.insert(staged.end(), step.begin(), step.end());
    } catch (...) {
        restore();
        throw;
    }
    restore();
    if (staged.size() != reference.size()) {
        throw StageError("the staged model gives " + std::to_string(staged.size()) + " logits, llama.cpp " +
                         std::to_string(reference.size()));
    }
    return nmse(reference, staged.data());
}

}  // namespace atp
