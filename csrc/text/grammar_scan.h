// A grammar's text, before llama.cpp parses it: how deep are its brackets, how long does it get when what is repeated
// is written out? Throws AtpError beyond the limits; other mistakes are left to the parser.
#pragma once

#include <cstddef>
#include <string>

namespace atp {

// where the next rule begins at or after `at`: behind white space and comments
size_t skip_space(const std::string & text, size_t at);

void scan_grammar(const std::string & text);

}  // namespace atp
