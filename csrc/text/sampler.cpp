#include "text/sampler.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/errors.h"
#include "llama.h"
#include "llama/model.h"
#include "llama/vocab_text.h"

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

bool is_better(const llama_token_data & a, const llama_token_data & b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

}  // namespace

Sampler::Sampler(const Model & model, const SamplingParams & params)
    : model_(model), grammar_(params.grammar.empty() ? nullptr : new Grammar(model, params.grammar)),
      chain_(nullptr, llama_sampler_free), n_wanted_(1) {
    if (params.temp > 0.0f) {
        n_wanted_ = params.top_k > 0 ? params.top_k : model.n_vocab();
    }
    add_penalties(params);
    if (params.temp > 0.0f) {
        add(llama_sampler_init_top_k(params.top_k));
        add(llama_sampler_init_top_p(params.top_p, 1));
        add(llama_sampler_init_min_p(params.min_p, 1));
        add(llama_sampler_init_temp(params.temp));
        add(llama_sampler_init_dist(params.seed));
    } else if (chain_) {
        add(llama_sampler_init_greedy());
    }
}

void Sampler::add(llama_sampler * sampler) {
    if (!chain_) {
        chain_.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    }
    llama_sampler_chain_add(chain_.get(), sampler);
}

void Sampler::add_penalties(const SamplingParams & params) {
    const bool any =
        params.repeat_penalty != 1.0f || params.frequency_penalty != 0.0f || params.presence_penalty != 0.0f;
    if (!any || params.repeat_last_n <= 0) {
        return;
    }
    n_wanted_ = model_.n_vocab();  // penalties may change which tokens are the likeliest
    add(llama_sampler_init_penalties(model_.n_vocab(), params.repeat_last_n, params.repeat_penalty,
                                     params.frequency_penalty, params.presence_penalty));
}

int32_t Sampler::sample(const float * logits) {
    int32_t token = likeliest(logits, model_.n_vocab());
    if (chain_) {
        fill_candidates(logits);
        token = draw(candidates_);
    }
    if (grammar_ && !grammar_->allows(token)) {
        token = draw_fitting(logits);
    }
    if (grammar_ && !ends(token)) {
        grammar_->accept(token);
    }
    if (chain_) {
        llama_sampler_accept(chain_.get(), token);  // only the final token, not a token that the grammar refused
    }
    return token;
}

void Sampler::fill_candidates(const float * logits) {
    candidates_.resize(model_.n_vocab());
    for (int32_t i = 0; i < model_.n_vocab(); ++i) {
        candidates_[i] = {i, logits[i], 0.0f};
    }
}

int32_t Sampler::draw(std::vector<llama_token_data> & candidates) {
    llama_token_data_array array = {candidates.data(), candidates.size(), -1, false};
    llama_sampler_apply(chain_.get(), &array);
    return array.data[array.selected].id;
}

// asks the grammar about the best candidates first, and about the next ones only while too few of them fit
int32_t Sampler::draw_fitting(const float * logits) {
    fill_candidates(logits);
    fitting_.clear();
    size_t n_asked = n_wanted_ < candidates_.size() ? 64 : candidates_.size();
    for (auto begin = candidates_.begin(); begin != candidates_.end() && fitting_.size() < n_wanted_; n_asked *= 16) {
        const auto left = static_cast<size_t>(candidates_.end() - begin);
        const auto end = begin + static_cast<ptrdiff_t>(std::min(n_asked, left));
        std::nth_element(begin, end, candidates_.end(), is_better);
        llama_token_data_array asked = {&*begin, static_cast<size_t>(end - begin), -1, false};
        grammar_->apply(asked);
        std::copy_if(begin, end, std::back_inserter(fitting_),
                     [](const llama_token_data & candidate) { return candidate.logit > -INFINITY; });
        begin = end;
    }
    if (fitting_.empty()) {
        throw StageError("grammar: no token of this model can go on with the answer; the grammar asks for characters "
                         "that its vocabulary does not have");
    }
    return chain_ ? draw(fitting_) : std::min_element(fitting_.begin(), fitting_.end(), is_better)->id;
}

bool Sampler::is_over() const {
    return grammar_ && grammar_->is_over();
}

bool Sampler::ends(int32_t token) const {
    return llama_vocab_is_eog(model_.vocab(), token);
}

std::string Sampler::piece(int32_t token) const {
    return token_piece(model_.vocab(), token);
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
