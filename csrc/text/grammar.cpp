#include "text/grammar.h"

#include <cmath>

#include "base/errors.h"
#include "llama/llama_private.h"
#include "llama/model.h"
#include "llama/vocab_text.h"
#include "text/grammar_check.h"

namespace atp {

namespace {

// most ways to read the text so far that are followed at once; each way costs time at each token
constexpr size_t n_stacks_max = 4096;

}  // namespace

Grammar::Grammar(const Model & model, const std::string & text)
    : model_(model), grammar_(nullptr, llama_grammar_free_impl) {
    check_grammar(text);
    grammar_.reset(llama_grammar_init_impl(model.vocab(), text.c_str(), "root", false, nullptr, 0, nullptr, 0));
    if (!grammar_) {
        throw AtpError("grammar: llama.cpp does not take it");  // check_grammar knows all its reasons
    }
}

// whether the token has a text, and the text so far stays valid UTF-8 with it
bool Grammar::is_text(int32_t token) const {
    Utf8State state = utf8_;
    const std::string piece = token_piece(model_.vocab(), token);
    return !piece.empty() && state.push(piece);
}

void Grammar::apply(llama_token_data_array & candidates) const {
    for (size_t i = 0; i < candidates.size; ++i) {
        llama_token_data & candidate = candidates.data[i];
        if (!llama_vocab_is_eog(model_.vocab(), candidate.id) && !is_text(candidate.id)) {
            candidate.logit = -INFINITY;
        }
    }
    llama_grammar_apply_impl(*grammar_, &candidates);
}

bool Grammar::allows(int32_t token) const {
    llama_token_data candidate = {token, 0.0f, 0.0f};
    llama_token_data_array array = {&candidate, 1, -1, false};
    apply(array);
    return candidate.logit == 0.0f;
}

void Grammar::accept(int32_t token) {
    const std::string piece = token_piece(model_.vocab(), token);
    utf8_.push(piece);
    try {
        for (const char byte : piece) {
            llama_grammar_accept_str(*grammar_, std::string(1, byte));
            if (llama_grammar_get_stacks(grammar_.get()).size() > n_stacks_max) {
                throw StageError("grammar: the answer can be read in more than " + std::to_string(n_stacks_max) +
                                 " ways; write the grammar so that what follows decides less");
            }
        }
    } catch (const AtpError &) {
        throw;
    } catch (const std::exception & e) {
        throw StageError(std::string("grammar: ") + e.what());
    }
}

bool Grammar::is_over() const {
    for (const llama_grammar_stack & stack : llama_grammar_get_stacks(grammar_.get())) {
        if (!stack.empty()) {
            return false;
        }
    }
    return true;
}

}  // namespace atp
