#include "llama/gguf_check.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/errors.h"
#include "base/text.h"
#include "ggml-cpp.h"
#include "gguf.h"
#include "llama/key_check.h"
#include "llama/llama_private.h"
#include "llama/log_capture.h"

namespace atp {

namespace fs = std::filesystem;

void check_gguf_start(const std::string & path, const char * what) {
    std::error_code ec;
    const fs::file_status status = fs::status(fs::u8path(path), ec);
    if (status.type() == fs::file_type::none) {
        throw ModelError("cannot open " + path + ": " + ec.message());
    }
    if (!fs::exists(status)) {
        throw ModelError("no such file: " + path + " (expected a GGUF " + what + ")");
    }
    if (fs::is_directory(status)) {
        throw ModelError(path + " is a folder; expected a GGUF file. Convert a Hugging Face checkpoint to GGUF first");
    }
    if (!fs::is_regular_file(status)) {
        throw ModelError(path + " is a pipe or a device; expected a GGUF file on disk");
    }
    std::ifstream in(fs::u8path(path), std::ios::binary);
    if (!in) {
        throw ModelError("cannot open " + path + ": " + std::strerror(errno));
    }
    char magic[4] = {0, 0, 0, 0};
    in.read(magic, 4);
    if (in.gcount() < 4) {
        throw ModelError(path + " holds only " + std::to_string(in.gcount()) + " bytes; expected a GGUF file");
    }
    if (std::memcmp(magic, "GGUF", 4) != 0) {
        throw ModelError(path + " is not a GGUF file: it starts with other bytes than 'GGUF'");
    }
}

namespace {

constexpr size_t n_arch_most = 64;  // characters of an architecture's name

// llama.cpp ends the process on a layer count it has no room for
void check_n_layer(const std::string & path, const gguf_context * gguf, const std::string & arch) {
    const int64_t key = gguf_find_key(gguf, (arch + ".block_count").c_str());
    if (key < 0 || gguf_get_kv_type(gguf, key) != GGUF_TYPE_UINT32) {
        return;
    }
    const uint32_t n_layer = gguf_get_val_u32(gguf, key);
    if (n_layer < 1 || n_layer > LLAMA_MAX_LAYERS) {
        throw ModelError(path + " says it has " + std::to_string(n_layer) + " layers; expected 1 to " +
                         std::to_string(LLAMA_MAX_LAYERS) + ". The file is damaged; download it again");
    }
}

// LoRA adapters and sidecars name the architecture they are for
void check_no_adapter(const std::string & path, const gguf_context * gguf) {
    const int64_t key = gguf_find_key(gguf, "general.type");
    if (key >= 0 && gguf_get_kv_type(gguf, key) == GGUF_TYPE_STRING &&
        std::string(gguf_get_val_str(gguf, key)) == "adapter") {
        throw ModelError(path + " is an adapter, not a model; an ATP sidecar goes with --atp, beside its model");
    }
}

uint64_t end_of_tensors(const gguf_context * gguf) {
    uint64_t end = gguf_get_data_offset(gguf);
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
        end = std::max<uint64_t>(end, gguf_get_data_offset(gguf) + gguf_get_tensor_offset(gguf, i) +
                                          gguf_get_tensor_size(gguf, i));
    }
    return end;
}

}  // namespace

std::string check_gguf(const std::string & path) {
    log_capture::install();
    check_gguf_start(path, "model");
    log_capture::clear();
    const gguf_init_params params = {/*.no_alloc =*/true, /*.ctx =*/nullptr};
    const gguf_context_ptr gguf(gguf_init_from_file(path.c_str(), params));
    if (!gguf) {
        throw ModelError(path + " is a damaged GGUF file (" + log_capture::last_error() + "); download it again");
    }
    const uint64_t need = end_of_tensors(gguf.get());
    const uint64_t have = fs::file_size(fs::u8path(path));
    if (have < need) {
        throw ModelError(path + " is cut short: its tensors end at byte " + std::to_string(need) + ", the file has " +
                         std::to_string(have) + "; download it again");
    }
    const int64_t key = gguf_find_key(gguf.get(), "general.architecture");
    if (key < 0 || gguf_get_kv_type(gguf.get(), key) != GGUF_TYPE_STRING) {
        throw ModelError(path + " names no general.architecture; it is not a model llama.cpp could run");
    }
    const std::string arch = gguf_get_val_str(gguf.get(), key);
    if (arch.empty() || arch.size() > n_arch_most || !is_plain_text(arch)) {
        throw ModelError(path + " names the architecture " + quoted(arch) + "; llama.cpp has none of such a name");
    }
    check_no_adapter(path, gguf.get());
    check_n_layer(path, gguf.get(), arch);
    if (arch == "clip") {
        check_projector_keys(path, gguf.get());
    } else {
        check_decoder_keys(path, gguf.get(), arch);
    }
    return arch;
}

}  // namespace atp
