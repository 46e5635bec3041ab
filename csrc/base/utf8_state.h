// Is a text that grows byte by byte the front of valid UTF-8? (RFC 3629, table of section 4)
#pragma once

#include <cstdint>
#include <string>

namespace atp {

class Utf8State {
  public:
    // false: the text is not the front of valid UTF-8; the state cannot be used any more
    bool push(const std::string & bytes) {
        for (const char byte : bytes) {
            if (!push(static_cast<uint8_t>(byte))) {
                return false;
            }
        }
        return true;
    }

    bool is_whole() const { return n_missing_ == 0; }  // no character is incomplete

  private:
    bool push(uint8_t byte) {
        if (n_missing_ > 0) {
            const bool fits = byte >= low_ && byte <= high_;
            expect(n_missing_ - 1, 0x80, 0xBF);
            return fits;
        }
        if (byte >= 0xE0) {  // not longer than needed, no surrogate, not beyond U+10FFFF
            expect(byte < 0xF0 ? 2 : 3,
                   byte == 0xE0   ? 0xA0
                   : byte == 0xF0 ? 0x90
                                  : 0x80,
                   byte == 0xED   ? 0x9F
                   : byte == 0xF4 ? 0x8F
                                  : 0xBF);
            return byte <= 0xF4;
        }
        if (byte >= 0x80) {
            expect(1, 0x80, 0xBF);
            return byte >= 0xC2;
        }
        return true;
    }

    void expect(int n, uint8_t low, uint8_t high) {
        n_missing_ = n;
        low_ = low;
        high_ = high;
    }

    int n_missing_ = 0;
    uint8_t low_ = 0x80, high_ = 0xBF;  // of the next byte, while one is missing
};

}  // namespace atp
