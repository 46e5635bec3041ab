// Do the keys of a GGUF have the types and values that llama.cpp takes for granted?
//
// llama.cpp reads these keys without looking at their type, or computes with values that its graphs assert on: either
// ends the process.
#pragma once

#include <string>

struct gguf_context;

namespace atp {

// throws ModelError naming the first key of a vision projector that libmtmd would read as another type
void check_projector_keys(const std::string & path, const gguf_context * gguf);

// throws ModelError naming the first key of a text model that no graph can be computed with
void check_decoder_keys(const std::string & path, const gguf_context * gguf, const std::string & arch);

}  // namespace atp
