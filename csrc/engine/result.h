// The result of a caption: its text, why it ended, and what it cost.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/report.h"

namespace atp {

class Generation;

struct Result {
    std::string text;
    std::vector<int32_t> tokens;
    std::string finish_reason;  // stop, length, repetition or cancelled; in a batch also error, see `error`
    std::string error;
    Report report;
};

// the result of a caption that has ended
Result make_result(const Generation & generation, Report report);

}  // namespace atp
