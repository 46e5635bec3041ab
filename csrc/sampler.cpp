#include "sampler.h"

#include <cmath>

#include "errors.h"
#include "llama.h"
#include "model.h"

namespace atp {

namespace {

// the likeliest token, the first of equals
int32_t likeliest(const float * logits, int32_t n_vocab) {
    int32_t best = 0;
    bool is_nan = false;
    for (int32_t i = 0; i < n_vocab; ++i) {
        is_nan = is_nan || std::isnan(logits[i]);
        best = logits[i] > logits[best] ? i : best;
    }
    if (is_nan || !std::isfinite(logits[best])) {
        throw StageError("the logits are not numbers; the model or the image tokens hold NaN");
    }
    return best;
}

}  // namespace

Sampler::Sampler(const Model & model, const SamplingParams & params)
    : model_(model), chain_(nullptr, llama_sampler_free) {
    if (params.temp <= 0.0f) {
        return;
    }
    chain_.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    llama_sampler_chain_add(chain_.get(), llama_sampler_init_top_k(params.top_k));
    llama_sampler_chain_add(chain_.get(), llama_sampler_init_top_p(params.top_p, 1));
    llama_sampler_chain_add(chain_.get(), llama_sampler_init_min_p(params.min_p, 1));
    llama_sampler_chain_add(chain_.get(), llama_sampler_init_temp(params.temp));
    llama_sampler_chain_add(chain_.get(), llama_sampler_init_dist(params.seed));
}

int32_t Sampler::sample(const float * logits) {
    const int32_t n_vocab = model_.n_vocab();
    const int32_t best = likeliest(logits, n_vocab);
    if (!chain_) {
        return best;
    }
    candidates_.resize(n_vocab);
    for (int32_t i = 0; i < n_vocab; ++i) {
        candidates_[i] = {i, logits[i], 0.0f};
    }
    llama_token_data_array array = {candidates_.data(), candidates_.size(), -1, false};
    llama_sampler_apply(chain_.get(), &array);
    const llama_token token = array.data[array.selected].id;
    llama_sampler_accept(chain_.get(), token);
    return token;
}

bool Sampler::ends(int32_t token) const {
    return llama_vocab_is_eog(model_.vocab(), token);
}

std::string Sampler::piece(int32_t token) const {
    std::string text(64, '\0');
    int32_t n = llama_token_to_piece(model_.vocab(), token, text.data(), static_cast<int32_t>(text.size()), 0, false);
    if (n < 0) {
        text.resize(-n);
        n = llama_token_to_piece(model_.vocab(), token, text.data(), static_cast<int32_t>(text.size()), 0, false);
    }
    text.resize(n);
    return text;
}

size_t whole_utf8(const std::string & text) {
    // look back over at most three continuation bytes for a lead byte that wants more than there is
    for (size_t back = 1; back <= 4 && back <= text.size(); ++back) {
        const auto byte = static_cast<unsigned char>(text[text.size() - back]);
        if ((byte & 0xC0U) == 0x80U) {
            continue;
        }
        const size_t wants = byte >= 0xF0U ? 4 : byte >= 0xE0U ? 3 : byte >= 0xC0U ? 2 : 1;
        return wants > back ? text.size() - back : text.size();
    }
    return text.size();
}

}  // namespace atp
