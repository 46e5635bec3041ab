// A JSON schema -> the grammar (GBNF) of its values, by llama.cpp's own converter.
//
// The converter passes over what it does not know, and recurses along references: atp_cpp.options.json_schema checks a
// schema and writes it anew before it comes here. Throws AtpError with the converter's reason, one line.
#pragma once

#include <string>

namespace atp {

std::string grammar_of_schema(const std::string & json);

}  // namespace atp
