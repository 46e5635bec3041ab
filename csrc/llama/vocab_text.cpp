#include "llama/vocab_text.h"

#include "llama.h"

namespace atp {

std::string token_piece(const llama_vocab * vocab, int32_t token) {
    std::string text(64, '\0');
    int32_t n = llama_token_to_piece(vocab, token, text.data(), static_cast<int32_t>(text.size()), 0, false);
    if (n < 0) {
        text.resize(-n);
        n = llama_token_to_piece(vocab, token, text.data(), static_cast<int32_t>(text.size()), 0, false);
    }
    text.resize(n);
    return text;
}

}  // namespace atp
