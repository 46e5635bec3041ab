#include "vision/projector_file.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/errors.h"
#include "ggml-cpp.h"
#include "gguf.h"

namespace atp {

namespace {

// those whose images libmtmd brings to one fixed size (mtmd.cpp: fixed_size, or llava_uhd with pinpoints)
const char * const fixed_size_types[] = {"mlp",       "ldp",    "ldpv2",    "adapter", "cogvlm",
                                         "janus_pro", "gemma3", "gemma3nv", "yasa2",   "nemotron_v2_vl"};
const char * const newline_names[] = {"v.image_newline", "model.image_newline"};

std::string text(const gguf_context * gguf, const char * key) {
    const int64_t at = gguf_find_key(gguf, key);
    return at >= 0 && gguf_get_kv_type(gguf, at) == GGUF_TYPE_STRING ? gguf_get_val_str(gguf, at) : "";
}

// one embedding; none, and why, if it cannot be used
std::vector<float> read_embedding(const std::string & path, const gguf_context * gguf, int64_t tensor, int32_t n_embd,
                                  std::string * why) {
    const std::string name = gguf_get_tensor_name(gguf, tensor);
    const ggml_type type = gguf_get_tensor_type(gguf, tensor);
    if (type != GGML_TYPE_F32 && type != GGML_TYPE_F16 && type != GGML_TYPE_BF16) {
        *why = name + " is of type " + ggml_type_name(type) + "; expected f32, f16 or bf16";
        return {};
    }
    std::vector<char> bytes(gguf_get_tensor_size(gguf, tensor));
    const size_t n = bytes.size() / ggml_type_size(type);
    if (n != static_cast<size_t>(n_embd)) {
        *why = name + " has " + std::to_string(n) + " elements; expected the model's " + std::to_string(n_embd);
        return {};
    }
    std::ifstream in(std::filesystem::u8path(path), std::ios::binary);
    in.seekg(static_cast<std::streamoff>(gguf_get_data_offset(gguf) + gguf_get_tensor_offset(gguf, tensor)));
    in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!in) {
        throw ModelError(path + ": tensor " + name + " cannot be read; download the file again");
    }
    std::vector<float> values(n);
    if (type == GGML_TYPE_F32) {
        std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char *>(values.data()));
    } else {
        ggml_get_type_traits(type)->to_float(bytes.data(), values.data(), static_cast<int64_t>(n));
    }
    return values;
}

}  // namespace

bool ProjectorFile::has_fixed_size() const {
    return image_size > 0 &&
           std::find(std::begin(fixed_size_types), std::end(fixed_size_types), type) != std::end(fixed_size_types);
}

ProjectorFile read_projector_file(const std::string & path, int32_t n_embd) {
    const gguf_init_params params = {/*.no_alloc =*/true, /*.ctx =*/nullptr};
    const gguf_context_ptr gguf(gguf_init_from_file(path.c_str(), params));
    if (!gguf) {
        throw ModelError(path + " cannot be read a second time; has it changed?");
    }
    ProjectorFile out;
    out.type = text(gguf.get(), "clip.projector_type");
    if (out.type.empty()) {
        out.type = text(gguf.get(), "clip.vision.projector_type");
    }
    const int64_t size = gguf_find_key(gguf.get(), "clip.vision.image_size");
    if (size >= 0 && gguf_get_kv_type(gguf.get(), size) == GGUF_TYPE_UINT32) {
        out.image_size = static_cast<int32_t>(gguf_get_val_u32(gguf.get(), size));
    }
    const int64_t line_break = gguf_find_tensor(gguf.get(), "v.token_embd.img_break");
    if (line_break >= 0) {
        out.line_break = read_embedding(path, gguf.get(), line_break, n_embd, &out.why_no_newline);
    }
    for (const char * name : newline_names) {
        const int64_t tensor = out.type == "mlp" ? gguf_find_tensor(gguf.get(), name) : -1;
        if (tensor >= 0) {
            out.newline = read_embedding(path, gguf.get(), tensor, n_embd, &out.why_no_newline);
            break;
        }
    }
    return out;
}

}  // namespace atp
