#include "text/generation.h"

#include <algorithm>

namespace atp {

namespace {

// ends `text` before the first stop string; true when there was one
bool cut_at_stop(const std::vector<std::string> & stop, std::string & text) {
    size_t end = std::string::npos;
    for (const std::string & s : stop) {
        end = s.empty() ? end : std::min(end, text.find(s));
    }
    if (end == std::string::npos) {
        return false;
    }
    text.resize(end);
    return true;
}

// bytes at the end of `text` that the next tokens could complete to a stop string
size_t undecided(const std::vector<std::string> & stop, const std::string & text) {
    size_t longest = 0;
    for (const std::string & s : stop) {
        for (size_t n = std::min(s.empty() ? 0 : s.size() - 1, text.size()); n > longest; --n) {
            if (text.compare(text.size() - n, n, s, 0, n) == 0) {
                longest = n;
            }
        }
    }
    return longest;
}

}  // namespace

Generation::Generation(const Model & model, GenerationParams params)
    : params_(std::move(params)), sampler_(model, params_.sampling) {}

// gives on_text the new part of the first n_bytes; false: on_text ends the caption
bool Generation::show(size_t n_bytes) {
    const size_t whole = whole_utf8(text_.substr(0, n_bytes));
    if (!params_.on_text || whole <= n_shown_) {
        return true;
    }
    const std::string piece = text_.substr(n_shown_, whole - n_shown_);
    n_shown_ = whole;
    return params_.on_text(piece);
}

bool Generation::end(const char * reason) {
    finish_reason_ = reason;
    text_.resize(whole_utf8(text_));
    if (finish_reason_ == "cancelled") {
        text_.resize(n_shown_);  // drop the text that was held back and never given to on_text
    } else {
        show(text_.size());
    }
    return false;
}

// keeps the first round of the loop that repetition_ found
bool Generation::end_loop() {
    tokens_.resize(repetition_.end_of_first_round());
    text_.clear();
    for (const int32_t token : tokens_) {
        text_ += sampler_.piece(token);
    }
    return end("repetition");
}

bool Generation::advance(const float * logits) {
    if (static_cast<int32_t>(tokens_.size()) >= params_.n_predict) {
        return end("length");
    }
    if (sampler_.is_over()) {
        return end("stop");
    }
    const int32_t token = sampler_.sample(logits);
    if (sampler_.ends(token)) {
        return end("stop");
    }
    tokens_.push_back(token);
    ++n_decoded_;
    text_ += sampler_.piece(token);
    const bool stopped = cut_at_stop(params_.stop, text_);
    if (!show(text_.size() - (stopped ? 0 : undecided(params_.stop, text_)))) {
        return end("cancelled");
    }
    if (stopped || sampler_.is_over()) {
        return end("stop");
    }
    if (params_.stop_on_repetition && repetition_.push(token)) {
        return end_loop();
    }
    return static_cast<int32_t>(tokens_.size()) < params_.n_predict || end("length");
}

}  // namespace atp
