// A small GGUF file, read into memory once, with getters that say what they expected and what came.
//
// A file above max_bytes, a size that no sidecar reaches, is refused. So a bad file can cause the allocation of a few
// times max_bytes at most. ggml's own reader parses the file from memory. Knows no schema: names, ranges and shapes
// come from the caller. Every getter throws ModelError naming the file and the key.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml-cpp.h"
#include "gguf.h"

namespace atp {

class SidecarFile {
  public:
    static constexpr uint64_t max_bytes = 16 << 20;
    static constexpr uint64_t max_entries = 1024;  // tensors, keys

    explicit SidecarFile(const std::string & path);

    bool has(const std::string & key) const;
    // string of `least` to `most` bytes, valid UTF-8 without control characters
    std::string text(const std::string & key, size_t least, size_t most) const;
    // the place of a string value among `names`
    template <size_t n>
    size_t choice(const std::string & key, const char * const (&names)[n]) const {
        return choice(key, names, n);
    }
    int32_t whole(const std::string & key, int32_t least, int32_t most) const;                  // stored as u32
    double real(const std::string & key) const;                                                 // stored as f32; finite
    std::vector<int32_t> wholes(const std::string & key, size_t n_least, size_t n_most) const;  // array of i32
    std::vector<double> reals(const std::string & key, size_t n) const;                         // array of f32

    // F32 tensor of shape ne = [n_in, n_out, 1, 1]: [n_out][n_in] finite numbers
    std::vector<float> tensor(const std::string & name, int64_t n_in, int64_t n_out) const;
    std::vector<std::string> tensor_names() const;

    // throws ModelError: "<file>: <what>"
    [[noreturn]] void fail(const std::string & what) const;

  private:
    int64_t find(const std::string & key, gguf_type type) const;
    int64_t find_array(const std::string & key, gguf_type type, size_t n_least, size_t n_most) const;
    size_t choice(const std::string & key, const char * const * names, size_t n) const;

    std::string path_;
    std::vector<char> bytes_;
    gguf_context_ptr gguf_;
};

}  // namespace atp
