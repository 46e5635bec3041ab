// Is a text a grammar (GBNF) that llama.cpp can follow in bounded time and memory?
//
// llama.cpp's parser gives the reasons. Before and after it stand our own limits: it recurses once for each bracket,
// copies what is repeated, and at some grammars never ends. Throws AtpError, one line. Knows no vocabulary.
#pragma once

#include <string>

namespace atp {

void check_grammar(const std::string & text);

}  // namespace atp
