#include "text/grammar_scan.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/errors.h"

namespace atp {

namespace {

constexpr size_t n_bytes_max = 256 * 1024;
constexpr size_t n_brackets_max = 200;       // one in another; the parser recurses for each
constexpr uint64_t n_repeat_max = 2000;      // llama.cpp's own; beyond it, it takes {0,N} for {0,}
constexpr uint64_t n_elements_max = 500000;  // characters, ranges and names, repetitions written out

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

class Scan {
  public:
    explicit Scan(const std::string & text) : text_(text) {}

    void run() {
        while (at_ < text_.size()) {
            step(text_[at_]);
            if (n_elements_ > n_elements_max) {
                fail("gets longer than " + std::to_string(n_elements_max) +
                     " elements when its repetitions are written out");
            }
        }
    }

  private:
    void step(char c) {
        if (c == '#') {
            at_ = std::min(text_.find_first_of("\r\n", at_), text_.size());
        } else if (c == '"' || c == '[') {
            item(quoted(c == '"' ? '"' : ']'));
        } else if (c == '<' || c == '!') {
            fail("names a token (<…>), which is not supported; write the characters");
        } else if (c == '(') {
            if (++n_open_ > n_brackets_max) {
                fail("has brackets more than " + std::to_string(n_brackets_max) + " deep");
            }
            ++at_;
        } else if (c == ')') {
            n_open_ -= n_open_ > 0 ? 1 : 0;
            ++at_;
            item(1);
        } else if (c == '*' || c == '+' || c == '?') {
            ++at_;
            item(2 * item_ + 3);
        } else if (c == '{') {
            ++at_;
            repeat();
        } else if (c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '|') {
            ++at_;
        } else {
            name();
        }
    }

    // a rule's name, '.', or something that the parser does not know
    void name() {
        const size_t end = std::min(text_.find_first_of("#\"[]<!()*+?{} \t\r\n|", at_ + 1), text_.size());
        at_ = end;
        item(1);
    }

    // "…" or […]: the number of its characters
    uint64_t quoted(char end) {
        const size_t begin = at_++;
        while (at_ < text_.size() && text_[at_] != end) {
            at_ += text_[at_] == '\\' ? 2 : 1;
        }
        at_ = std::min(at_ + 1, text_.size());
        return at_ - begin;
    }

    uint64_t number() {
        uint64_t n = 0;
        for (; at_ < text_.size() && is_digit(text_[at_]); ++at_) {
            n = std::min<uint64_t>(10 * n + static_cast<uint64_t>(text_[at_] - '0'), UINT32_MAX);
        }
        return n;
    }

    void repeat() {
        at_ = skip_space(text_, at_);
        const uint64_t least = number();
        at_ = skip_space(text_, at_);
        uint64_t most = least;
        bool has_most = true;
        if (at_ < text_.size() && text_[at_] == ',') {
            at_ = skip_space(text_, at_ + 1);
            has_most = at_ < text_.size() && is_digit(text_[at_]);
            most = has_most ? number() : least;
        }
        if (most < least) {
            fail("repeats something at least " + std::to_string(least) + " and at most " + std::to_string(most) +
                 " times");
        }
        if (most > n_repeat_max) {
            fail("repeats something " + std::to_string(most) + " times; at most " + std::to_string(n_repeat_max) +
                 " is possible, or no limit: {N,}");
        }
        item((item_ + 3) * std::max<uint64_t>(most, 1));
        at_ += at_ < text_.size() && text_[at_] == '}' ? 1 : 0;
    }

    void item(uint64_t n) {
        item_ = n;
        n_elements_ += n;
    }

    [[noreturn]] void fail(const std::string & what) const {
        const auto line =
            1 + std::count(text_.begin(), text_.begin() + static_cast<ptrdiff_t>(std::min(at_, text_.size())), '\n');
        throw AtpError("grammar, line " + std::to_string(line) + ": " + what);
    }

    const std::string & text_;
    size_t at_ = 0;
    size_t n_open_ = 0;
    uint64_t item_ = 0;  // elements of what a repetition would repeat
    uint64_t n_elements_ = 0;
};

}  // namespace

size_t skip_space(const std::string & text, size_t at) {
    while (at < text.size()) {
        if (text[at] == '#') {
            at = std::min(text.find_first_of("\r\n", at), text.size());
        } else if (text[at] == ' ' || text[at] == '\t' || text[at] == '\r' || text[at] == '\n') {
            ++at;
        } else {
            break;
        }
    }
    return at;
}

void scan_grammar(const std::string & text) {
    if (text.size() > n_bytes_max) {
        throw AtpError("grammar: has " + std::to_string(text.size()) + " bytes; at most " +
                       std::to_string(n_bytes_max) + " are taken");
    }
    if (text.find('\0') != std::string::npos) {
        throw AtpError("grammar: holds a NUL character");
    }
    Scan(text).run();
}

}  // namespace atp
