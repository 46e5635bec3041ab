// Logits -> next token and token -> text, by llama.cpp's own samplers, grammar and vocabulary.
//
// With a grammar the token is drawn first and, if it does not fit, once more among those that do: as llama.cpp's
// common_sampler_sample does it, greedy is the best token that fits.
// Knows no stages. Throws StageError (logits that are not numbers; no token of the model fits the
// grammar) and, for a text that is no grammar, AtpError.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "llama.h"
#include "text/grammar.h"

namespace atp {

class Model;

struct SamplingParams {
    float temp = 0.0f;  // 0: greedy
    int32_t top_k = 40;
    float top_p = 0.95f;
    float min_p = 0.05f;
    uint32_t seed = 0;
    std::string grammar;  // GBNF; "" for none
    // of tokens that the last repeat_last_n drawn hold; 1, 0 and 0: none
    float repeat_penalty = 1.0f;
    float frequency_penalty = 0.0f;
    float presence_penalty = 0.0f;
    int32_t repeat_last_n = 64;
};

class Sampler {
  public:
    Sampler(const Model & model, const SamplingParams & params);

    int32_t sample(const float * logits);    // [n_vocab]
    bool is_over() const;                    // the grammar allows nothing more
    bool ends(int32_t token) const;          // an end-of-generation token
    std::string piece(int32_t token) const;  // may be part of a UTF-8 character

  private:
    void add_penalties(const SamplingParams & params);
    void add(llama_sampler * sampler);
    void fill_candidates(const float * logits);
    int32_t draw(std::vector<llama_token_data> & candidates);
    int32_t draw_fitting(const float * logits);

    const Model & model_;
    std::unique_ptr<Grammar> grammar_;                                 // null: any text
    std::unique_ptr<llama_sampler, void (*)(llama_sampler *)> chain_;  // null: the likeliest
    size_t n_wanted_;                                                  // best candidates the draw looks at
    std::vector<llama_token_data> candidates_, fitting_;               // kept between tokens
};

// how many bytes at the front of `text` are whole UTF-8 characters
size_t whole_utf8(const std::string & text);

}  // namespace atp
