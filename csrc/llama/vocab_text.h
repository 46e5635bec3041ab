// The text of a token; "" for tokens that only control. It may be part of a UTF-8 character.
#pragma once

#include <cstdint>
#include <string>

struct llama_vocab;

namespace atp {

std::string token_piece(const llama_vocab * vocab, int32_t token);

}  // namespace atp
