// A grammar (GBNF, llama.cpp's) that an answer follows: which tokens may come next.
//
// In:  the grammar's text; candidates (token, logit). Out: logit -INFINITY for each that does not fit.
// Knows no sampling. Throws AtpError for a text that is no grammar, StageError when it cannot be followed further.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/utf8_state.h"
#include "llama.h"

struct llama_grammar;

namespace atp {

class Model;

class Grammar {
  public:
    // `text` is checked first (check_grammar); its root rule is "root"
    Grammar(const Model & model, const std::string & text);

    void apply(llama_token_data_array & candidates) const;
    bool allows(int32_t token) const;
    void accept(int32_t token);  // one that it allows, and that does not end the text
    bool is_over() const;        // the text is whole, and nothing may follow it

  private:
    bool is_text(int32_t token) const;

    const Model & model_;
    std::unique_ptr<llama_grammar, void (*)(llama_grammar *)> grammar_;
    Utf8State utf8_;  // of the text so far
};

}  // namespace atp
