#include "sidecar/sidecar_file.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/errors.h"
#include "base/text.h"
#include "llama/gguf_check.h"
#include "llama/log_capture.h"

namespace atp {

namespace fs = std::filesystem;

namespace {

std::vector<char> read_all(const std::string & path) {
    std::error_code ec;  // ignored: check_gguf_start reports a path that cannot be read
    if (fs::is_directory(fs::u8path(path), ec)) {
        throw ModelError(path + " is a folder; expected a GGUF sidecar. Make one of it: atp-cpp convert --atp " + path);
    }
    check_gguf_start(path, "sidecar");
    const uint64_t size = fs::file_size(fs::u8path(path));
    if (size > SidecarFile::max_bytes) {
        throw ModelError(path + " has " + std::to_string(size) + " bytes; a sidecar has at most " +
                         std::to_string(SidecarFile::max_bytes) + ". Is it the model? That goes with -m");
    }
    std::vector<char> bytes(size);
    std::ifstream in(fs::u8path(path), std::ios::binary);
    in.read(bytes.data(), static_cast<std::streamsize>(size));
    if (!in || static_cast<uint64_t>(in.gcount()) != size) {
        throw ModelError(path + " could not be read to its end; expected " + std::to_string(size) + " bytes");
    }
    return bytes;
}

// ggml's reader allocates memory for these two counts before it notices that they are wrong. Header: "GGUF", u32
// version, u64 tensors, u64 keys
void check_counts(const std::string & path, const std::vector<char> & bytes) {
    constexpr size_t header = 24;
    if (bytes.size() < header) {
        return;  // ggml says what is missing
    }
    uint64_t n_tensors = 0;
    uint64_t n_keys = 0;
    std::memcpy(&n_tensors, bytes.data() + 8, sizeof(n_tensors));
    std::memcpy(&n_keys, bytes.data() + 16, sizeof(n_keys));
    if (n_tensors > SidecarFile::max_entries || n_keys > SidecarFile::max_entries) {
        throw ModelError(path + " says it holds " + std::to_string(n_tensors) + " tensors and " +
                         std::to_string(n_keys) + " keys; a sidecar has at most " +
                         std::to_string(SidecarFile::max_entries) + " of each. Copy or convert it again");
    }
}

std::string range(int64_t least, int64_t most) {
    return std::to_string(least) + " to " + std::to_string(most);
}

}  // namespace

SidecarFile::SidecarFile(const std::string & path) : path_(path) {
    log_capture::install();
    bytes_ = read_all(path);
    check_counts(path, bytes_);
    log_capture::clear();
    const gguf_init_params params = {/*.no_alloc =*/true, /*.ctx =*/nullptr};
    gguf_.reset(gguf_init_from_buffer(bytes_.data(), bytes_.size(), params));
    if (!gguf_) {
        throw ModelError(path + " is a damaged GGUF file (" + log_capture::last_error() +
                         "); copy or convert it again");
    }
}

void SidecarFile::fail(const std::string & what) const {
    throw ModelError(path_ + ": " + what);
}

bool SidecarFile::has(const std::string & key) const {
    return gguf_find_key(gguf_.get(), key.c_str()) >= 0;
}

int64_t SidecarFile::find(const std::string & key, gguf_type type) const {
    const int64_t id = gguf_find_key(gguf_.get(), key.c_str());
    if (id < 0) {
        fail("the key " + key + " is missing; convert the sidecar again");
    }
    const gguf_type stored = gguf_get_kv_type(gguf_.get(), id);
    if (stored != type) {
        fail(key + " must be stored as " + gguf_type_name(type) + ", got " + gguf_type_name(stored));
    }
    return id;
}

int64_t SidecarFile::find_array(const std::string & key, gguf_type type, size_t n_least, size_t n_most) const {
    const int64_t id = find(key, GGUF_TYPE_ARRAY);
    const gguf_type stored = gguf_get_arr_type(gguf_.get(), id);
    if (stored != type) {
        fail(key + " must be an array of " + gguf_type_name(type) + ", got one of " + gguf_type_name(stored));
    }
    const size_t n = gguf_get_arr_n(gguf_.get(), id);
    if (n < n_least || n > n_most) {
        fail(key + " must have " + range(n_least, n_most) + " elements, got " + std::to_string(n));
    }
    return id;
}

std::string SidecarFile::text(const std::string & key, size_t least, size_t most) const {
    const std::string value = gguf_get_val_str(gguf_.get(), find(key, GGUF_TYPE_STRING));
    if (value.size() < least || value.size() > most) {
        fail(key + " must be text of " + range(least, most) + " bytes, got " + quoted(value));
    }
    if (!is_plain_text(value)) {
        fail(key + " must be text without control characters, got " + quoted(value));
    }
    return value;
}

size_t SidecarFile::choice(const std::string & key, const char * const * names, size_t n) const {
    const std::string value = gguf_get_val_str(gguf_.get(), find(key, GGUF_TYPE_STRING));
    std::string all;
    for (size_t i = 0; i < n; ++i) {
        if (value == names[i]) {
            return i;
        }
        all += (i == 0 ? "" : ", ") + std::string(names[i]);
    }
    fail(key + " must be one of " + all + ", got " + quoted(value));
}

int32_t SidecarFile::whole(const std::string & key, int32_t least, int32_t most) const {
    const uint32_t value = gguf_get_val_u32(gguf_.get(), find(key, GGUF_TYPE_UINT32));
    if (value < static_cast<uint32_t>(least) || value > static_cast<uint32_t>(most)) {
        fail(key + " must be " + range(least, most) + ", got " + std::to_string(value));
    }
    return static_cast<int32_t>(value);
}

double SidecarFile::real(const std::string & key) const {
    const float value = gguf_get_val_f32(gguf_.get(), find(key, GGUF_TYPE_FLOAT32));
    if (!std::isfinite(value)) {
        fail(key + " must be a finite number, got " + std::to_string(value));
    }
    return value;
}

std::vector<int32_t> SidecarFile::wholes(const std::string & key, size_t n_least, size_t n_most) const {
    const int64_t id = find_array(key, GGUF_TYPE_INT32, n_least, n_most);
    std::vector<int32_t> values(gguf_get_arr_n(gguf_.get(), id));
    std::memcpy(values.data(), gguf_get_arr_data(gguf_.get(), id), values.size() * sizeof(int32_t));
    return values;
}

std::vector<double> SidecarFile::reals(const std::string & key, size_t n) const {
    const int64_t id = find_array(key, GGUF_TYPE_FLOAT32, n, n);
    std::vector<float> values(n);
    std::memcpy(values.data(), gguf_get_arr_data(gguf_.get(), id), n * sizeof(float));
    for (const float value : values) {
        if (!std::isfinite(value)) {
            fail(key + " must hold finite numbers, got " + std::to_string(value));
        }
    }
    return {values.begin(), values.end()};
}

std::vector<float> SidecarFile::tensor(const std::string & name, int64_t n_in, int64_t n_out) const {
    const gguf_context * gguf = gguf_.get();
    const int64_t id = gguf_find_tensor(gguf, name.c_str());
    if (id < 0) {
        fail("the tensor " + name + " is missing; convert the sidecar again");
    }
    if (gguf_get_tensor_type(gguf, id) != GGML_TYPE_F32) {
        fail("tensor " + name + " must be of type f32, got " + ggml_type_name(gguf_get_tensor_type(gguf, id)));
    }
    const int64_t * ne = gguf_get_tensor_ne(gguf, id);
    if (ne[0] != n_in || ne[1] != n_out || ne[2] != 1 || ne[3] != 1) {
        fail("tensor " + name + " must have the shape [" + std::to_string(n_in) + ", " + std::to_string(n_out) +
             "], got [" + std::to_string(ne[0]) + ", " + std::to_string(ne[1]) + ", " + std::to_string(ne[2]) + ", " +
             std::to_string(ne[3]) + "]");
    }
    const size_t n_bytes = gguf_get_tensor_size(gguf, id);
    const size_t begin = gguf_get_data_offset(gguf) + gguf_get_tensor_offset(gguf, id);
    if (begin > bytes_.size() || n_bytes > bytes_.size() - begin) {
        fail("cut short inside tensor " + name + ": it ends at byte " + std::to_string(begin + n_bytes) +
             ", the file has " + std::to_string(bytes_.size()) + "; copy or convert it again");
    }
    std::vector<float> values(static_cast<size_t>(n_in * n_out));
    std::memcpy(values.data(), bytes_.data() + begin, n_bytes);
    for (const float value : values) {
        if (!std::isfinite(value)) {
            fail("tensor " + name + " holds " + std::to_string(value) + "; expected finite numbers");
        }
    }
    return values;
}

std::vector<std::string> SidecarFile::tensor_names() const {
    std::vector<std::string> names;
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf_.get()); ++i) {
        names.emplace_back(gguf_get_tensor_name(gguf_.get(), i));
    }
    return names;
}

}  // namespace atp
