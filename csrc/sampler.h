// Logits -> next token and token -> text, by llama.cpp's own samplers and vocabulary.
//
// Knows no stages. Throws StageError (logits that are not numbers).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "llama.h"

namespace atp {

class Model;

struct SamplingParams {
    float temp = 0.0f;  // 0: greedy
    int32_t top_k = 40;
    float top_p = 0.95f;
    float min_p = 0.05f;
    uint32_t seed = 0;
};

class Sampler {
  public:
    Sampler(const Model & model, const SamplingParams & params);

    int32_t sample(const float * logits);    // [n_vocab]
    bool ends(int32_t token) const;          // an end-of-generation token
    std::string piece(int32_t token) const;  // may be part of a UTF-8 character

  private:
    const Model & model_;
    std::unique_ptr<llama_sampler, void (*)(llama_sampler *)> chain_;  // null: greedy
    std::vector<llama_token_data> candidates_;                         // [n_vocab], kept between tokens
};

// how many bytes at the front of `text` are whole UTF-8 characters
size_t whole_utf8(const std::string & text);

}  // namespace atp
