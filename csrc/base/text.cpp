#include "base/text.h"

#include <cstdint>

namespace atp {

namespace {

bool is_tail(const std::string & bytes, size_t at) {
    return at < bytes.size() && (static_cast<uint8_t>(bytes[at]) & 0xC0) == 0x80;
}

// length of the printable character that begins at `at`; 0 if there is none (RFC 3629, table of section 4)
size_t character(const std::string & bytes, size_t at) {
    const auto first = static_cast<uint8_t>(bytes[at]);
    if (first < 0x80) {
        return first >= 0x20 && first != 0x7F ? 1 : 0;
    }
    if (first < 0xC2 || first > 0xF4) {
        return 0;
    }
    const size_t n = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    for (size_t i = 1; i < n; ++i) {
        if (!is_tail(bytes, at + i)) {
            return 0;
        }
    }
    const auto second = static_cast<uint8_t>(bytes[at + 1]);
    const bool control = first == 0xC2 && second < 0xA0;  // U+0080 .. U+009F
    const bool longer_than_needed = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
    const bool surrogate = first == 0xED && second >= 0xA0;
    const bool beyond_unicode = first == 0xF4 && second >= 0x90;
    return control || longer_than_needed || surrogate || beyond_unicode ? 0 : n;
}

}  // namespace

bool is_plain_text(const std::string & bytes) {
    for (size_t at = 0; at < bytes.size();) {
        const size_t n = character(bytes, at);
        if (n == 0) {
            return false;
        }
        at += n;
    }
    return true;
}

std::string quoted(const std::string & bytes) {
    constexpr size_t longest = 80;
    constexpr const char * hex = "0123456789abcdef";
    std::string out = "'";
    for (size_t at = 0; at < bytes.size();) {
        if (at >= longest) {
            return out + "…' (" + std::to_string(bytes.size()) + " bytes)";
        }
        const size_t n = character(bytes, at);
        if (n == 0) {
            const auto byte = static_cast<uint8_t>(bytes[at++]);
            out += {'\\', 'x', hex[byte >> 4], hex[byte & 15]};
        } else {
            out += bytes.substr(at, n);
            at += n;
        }
    }
    return out + "'";
}

}  // namespace atp
