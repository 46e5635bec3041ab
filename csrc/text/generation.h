// One caption's text while it grows: logits -> token, until a token, a stop string or the length ends it.
//
// In:  the logits of the row before each token [n_vocab]. Out: tokens, whole characters of text, why it ended.
// Knows no stages. Throws StageError (logits that are not numbers) and whatever on_text throws.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "text/repetition.h"
#include "text/sampler.h"

namespace atp {

class Model;

struct GenerationParams {
    SamplingParams sampling;
    int32_t n_predict = 128;
    std::vector<std::string> stop;
    bool stop_on_repetition = false;                   // a loop ends the caption, after its first round
    std::function<bool(const std::string &)> on_text;  // new whole characters; false ends the caption
};

class Generation {
  public:
    Generation(const Model & model, GenerationParams params);

    // from now on it ends after so many tokens
    void limit(int32_t n_predict) { params_.n_predict = n_predict; }

    // takes the next token; true when the caption goes on, and token() is to be decoded next
    bool advance(const float * logits);

    int32_t token() const { return tokens_.back(); }
    const std::vector<int32_t> & tokens() const { return tokens_; }
    const std::string & text() const { return text_; }                    // final once the caption has ended
    const std::string & finish_reason() const { return finish_reason_; }  // see Result; "" until then
    int32_t n_decoded() const { return n_decoded_; }  // tokens drawn, those of a loop's later rounds included

  private:
    bool show(size_t n_bytes);
    bool end(const char * reason);
    bool end_loop();

    GenerationParams params_;
    Sampler sampler_;
    Repetition repetition_;
    std::vector<int32_t> tokens_;
    int32_t n_decoded_ = 0;
    std::string text_;
    std::string finish_reason_;
    size_t n_shown_ = 0;  // bytes on_text has been given so far
};

}  // namespace atp
