#include "stages/cache_copy.h"

#include <cstring>
#include <stdexcept>
#include <vector>

#include "base/errors.h"
#include "llama/llama_private.h"
#include "llama/log_capture.h"

namespace atp {

namespace {

class Writer : public llama_io_write_i {
  public:
    void write(const void * src, size_t size) override {
        const auto * bytes = static_cast<const uint8_t *>(src);
        data_.insert(data_.end(), bytes, bytes + size);
    }
    void write_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        const size_t at = data_.size();
        data_.resize(at + size);
        ggml_backend_tensor_get(tensor, &data_[at], offset, size);
    }
    size_t n_bytes() override { return data_.size(); }
    const std::vector<uint8_t> & data() const { return data_; }

  private:
    std::vector<uint8_t> data_;
};

class Reader : public llama_io_read_i {
  public:
    explicit Reader(const std::vector<uint8_t> & data) : data_(data) {}

    void read(void * dst, size_t size) override { std::memcpy(dst, take(size), size); }
    void read_tensor(ggml_tensor * tensor, size_t offset, size_t size) override {
        ggml_backend_tensor_set(tensor, take(size), offset, size);
    }
    size_t n_bytes() override { return at_; }

  private:
    const uint8_t * take(size_t size) {
        if (size > data_.size() - at_) {
            throw std::runtime_error("the saved cells end early");
        }
        at_ += size;
        return data_.data() + at_ - size;
    }

    const std::vector<uint8_t> & data_;
    size_t at_ = 0;
};

}  // namespace

void copy_sequence(const llama_memory_i & from, int32_t seq_from, llama_memory_i & to, int32_t seq_to) {
    Writer saved;
    from.state_write(saved, seq_from);
    to.seq_rm(seq_to, -1, -1);
    log_capture::clear();
    try {
        Reader reader(saved.data());
        to.state_read(reader, seq_to);
    } catch (const std::exception & e) {
        throw StageError("cells cannot be copied between two KV caches: " + log_capture::last_error() + " (" +
                         e.what() + ")");
    }
}

}  // namespace atp
