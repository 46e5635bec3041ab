// Whether a text ends in a loop: its last tokens are the same sequence of up to 64 tokens, three times or more, and 64
// tokens or more in all. Shorter repetitions are allowed: lists, "ha ha ha", the line in a table.
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
