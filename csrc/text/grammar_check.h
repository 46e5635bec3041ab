// Is a text a grammar (GBNF) that llama.cpp can follow in bounded time and memory?
//
// llama.cpp's parser gives the reasons for errors. Our own limits are checked before and after the parser, because it
// recurses once for each bracket, copies each repeated part, and never ends with some grammars. Throws AtpError, one
// line. Knows no vocabulary.
#pragma once

#include <string>

namespace atp {

void check_grammar(const std::string & text);

}  // namespace atp
