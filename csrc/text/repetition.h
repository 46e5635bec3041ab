// Does a text end in a loop? It does when its last tokens are one cycle of up to 64 tokens, word for word, three times
// or more, and 64 tokens at least. Shorter is left alone: lists, "ha ha ha", the rule of a table.
//
// Knows token ids only. Throws nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace atp {

class Repetition {
  public:
    static constexpr size_t longest_period = 64;
    static constexpr size_t least_tokens = 64;
    static constexpr size_t least_rounds = 3;

    bool push(int32_t token);  // the next one; true when the text now ends in a loop

    // of the loop that was found
    size_t period() const { return period_; }
    size_t end_of_first_round() const { return start_ + period_; }  // tokens up to there

  private:
    std::vector<int32_t> tokens_;
    std::array<size_t, longest_period + 1> n_same_{};  // [period] tokens in a row equal to the one a period before
    size_t start_ = 0, period_ = 0;
};

}  // namespace atp
