// Text from files that may hold anything.
#pragma once

#include <string>

namespace atp {

// valid UTF-8 without control characters
bool is_plain_text(const std::string & bytes);

// for a message: in quotes, bytes that are no plain text as \xNN, cut after 80 bytes
std::string quoted(const std::string & bytes);

}  // namespace atp
