#include "llama/key_check.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/errors.h"
#include "gguf.h"
#include "llama/llama_private.h"

namespace atp {

namespace {

struct KeyType {
    const char * end;  // of the key's name
    gguf_type type;
};

// what clip.cpp reads, by the end of the name: the part before it says which encoder it is for
const KeyType projector_keys[] = {
    {".projector_type", GGUF_TYPE_STRING},
    {".mm_patch_merge_type", GGUF_TYPE_STRING},
    {".has_vision_encoder", GGUF_TYPE_BOOL},
    {".has_audio_encoder", GGUF_TYPE_BOOL},
    {".has_gen_audio_encoder", GGUF_TYPE_BOOL},
    {".use_gelu", GGUF_TYPE_BOOL},
    {".use_silu", GGUF_TYPE_BOOL},
    {".layer_norm_epsilon", GGUF_TYPE_FLOAT32},
    {".swiglu_clamp", GGUF_TYPE_FLOAT32},
    {".image_mean", GGUF_TYPE_ARRAY},
    {".image_std", GGUF_TYPE_ARRAY},
    {".image_grid_pinpoints", GGUF_TYPE_ARRAY},
    {".feature_layer", GGUF_TYPE_ARRAY},
    {".wa_layer_indexes", GGUF_TYPE_ARRAY},
    {".wa_pattern_mode", GGUF_TYPE_ARRAY},
    {".spatial_offsets", GGUF_TYPE_ARRAY},
    {".embedding_length", GGUF_TYPE_UINT32},
    {".feed_forward_length", GGUF_TYPE_UINT32},
    {".block_count", GGUF_TYPE_UINT32},
    {".projection_dim", GGUF_TYPE_UINT32},
    {".head_count", GGUF_TYPE_UINT32},
    {".head_count_kv", GGUF_TYPE_UINT32},
    {".head_dim", GGUF_TYPE_UINT32},
    {".image_size", GGUF_TYPE_UINT32},
    {".patch_size", GGUF_TYPE_UINT32},
    {".image_min_pixels", GGUF_TYPE_UINT32},
    {".image_max_pixels", GGUF_TYPE_UINT32},
    {".preproc_min_tiles", GGUF_TYPE_UINT32},
    {".preproc_max_tiles", GGUF_TYPE_UINT32},
    {".preproc_image_size", GGUF_TYPE_UINT32},
    {".scale_factor", GGUF_TYPE_UINT32},
    {".spatial_merge_size", GGUF_TYPE_UINT32},
    {".n_wa_pattern", GGUF_TYPE_UINT32},
    {".window_size", GGUF_TYPE_UINT32},
};

// those whose graphs assert that keys, values and rotations are as wide as a head; others may differ
const char * const one_width[] = {"llama",    "llama4",    "qwen2",   "qwen2moe",   "qwen2vl",
                                  "qwen3",    "qwen3moe",  "qwen3vl", "qwen3vlmoe", "mistral3",
                                  "granite",  "internlm2", "smollm3", "starcoder2", "olmo2",
                                  "ernie4_5", "paddleocr", "cogvlm",  "chameleon"};

bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

[[noreturn]] void refuse(const std::string & path, const std::string & why) {
    throw ModelError(path + ": " + why + ". The file is damaged or badly converted; download or convert it again");
}

// -1: no such number
int64_t whole(const gguf_context * gguf, const std::string & key) {
    const int64_t at = gguf_find_key(gguf, key.c_str());
    return at >= 0 && gguf_get_kv_type(gguf, at) == GGUF_TYPE_UINT32 ? int64_t(gguf_get_val_u32(gguf, at)) : -1;
}

void check_eps(const std::string & path, const gguf_context * gguf, const std::string & key) {
    const int64_t at = gguf_find_key(gguf, key.c_str());
    if (at < 0 || gguf_get_kv_type(gguf, at) != GGUF_TYPE_FLOAT32) {
        return;
    }
    const float eps = gguf_get_val_f32(gguf, at);
    if (!std::isfinite(eps) || eps < 0) {
        refuse(path, key + " is " + std::to_string(eps) + "; expected 0 or more");
    }
}

// elements of a tensor; -1: it is not there
int64_t n_elements(const gguf_context * gguf, const char * name) {
    const int64_t at = gguf_find_tensor(gguf, name);
    if (at < 0) {
        return -1;
    }
    const ggml_type type = gguf_get_tensor_type(gguf, at);
    return static_cast<int64_t>(gguf_get_tensor_size(gguf, at) / ggml_type_size(type)) * ggml_blck_size(type);
}

// of an architecture of one_width: heads that llama.cpp derives from the width, or is told
void check_heads(const std::string & path, const gguf_context * gguf, const std::string & arch) {
    const int64_t n_embd = whole(gguf, arch + ".embedding_length");
    const int64_t n_head = whole(gguf, arch + ".attention.head_count");
    const int64_t key = whole(gguf, arch + ".attention.key_length");
    const int64_t value = whole(gguf, arch + ".attention.value_length");
    if (n_embd <= 0 || n_head < 0) {
        return;  // llama.cpp refuses the first; the second has a number for each layer
    }
    if (key < 0 && value < 0 && (n_head == 0 || n_embd % n_head != 0)) {
        refuse(path, std::to_string(n_head) + " attention heads do not divide its width, " + std::to_string(n_embd));
    }
    const int64_t derived = n_head > 0 ? n_embd / n_head : 0;
    const int64_t n_key = key < 0 ? derived : key;
    const int64_t n_value = value < 0 ? derived : value;
    const int64_t n_rot = whole(gguf, arch + ".rope.dimension_count");
    if (n_key != n_value) {
        refuse(path, "a head's key has " + std::to_string(n_key) + " elements, its value " + std::to_string(n_value));
    }
    const int64_t n_query = n_elements(gguf, "blk.0.attn_q.weight");
    if (n_query >= 0 && (n_head > n_query || n_key > n_query || n_query != n_embd * n_head * n_key)) {
        refuse(path, std::to_string(n_head) + " attention heads of " + std::to_string(n_key) +
                         " elements are not what blk.0.attn_q.weight makes");
    }
    if (n_rot >= 0 && n_rot != n_key) {
        refuse(path, arch + ".rope.dimension_count is " + std::to_string(n_rot) + ", a head has " +
                         std::to_string(n_key) + " elements");
    }
}

}  // namespace

void check_projector_keys(const std::string & path, const gguf_context * gguf) {
    for (int64_t i = 0; i < gguf_get_n_kv(gguf); ++i) {
        const std::string key = gguf_get_key(gguf, i);
        const bool text = key == "general.name" || key == "general.description";
        const KeyType * known = std::find_if(std::begin(projector_keys), std::end(projector_keys),
                                             [&](const KeyType & entry) { return ends_with(key, entry.end); });
        if (!text && (key.rfind("clip.", 0) != 0 || known == std::end(projector_keys))) {
            continue;
        }
        const gguf_type expected = text ? GGUF_TYPE_STRING : known->type;
        const gguf_type type = gguf_get_kv_type(gguf, i);
        if (type != expected) {
            refuse(path, key + " is of type " + gguf_type_name(type) + "; expected " + gguf_type_name(expected));
        }
    }
    check_eps(path, gguf, "clip.vision.attention.layer_norm_epsilon");
}

void check_decoder_keys(const std::string & path, const gguf_context * gguf, const std::string & arch) {
    check_eps(path, gguf, arch + ".attention.layer_norm_rms_epsilon");
    check_eps(path, gguf, arch + ".attention.layer_norm_epsilon");
    const int64_t n_expert = whole(gguf, arch + ".expert_count");
    if (n_expert > LLAMA_MAX_EXPERTS) {
        refuse(path, arch + ".expert_count is " + std::to_string(n_expert) + "; expected at most " +
                         std::to_string(LLAMA_MAX_EXPERTS));
    }
    if (std::find(std::begin(one_width), std::end(one_width), arch) != std::end(one_width)) {
        check_heads(path, gguf, arch);
    }
    const std::string key = arch + ".rope.dimension_count";
    const int64_t n_rot = whole(gguf, key);
    if (n_rot < 0) {
        return;
    }
    if (n_rot == 0 && arch.rfind("gemma", 0) == 0) {  // with it the tiny one ran for over 10 seconds
        refuse(path, key + " is 0; expected the elements of a head");
    }
    if (n_rot % 2 != 0) {
        refuse(path, key + " is " + std::to_string(n_rot) + "; expected an even number");
    }
    const int64_t n_embd = whole(gguf, arch + ".embedding_length");
    const int64_t n_head = whole(gguf, arch + ".attention.head_count");
    int64_t head = whole(gguf, arch + ".attention.key_length");
    if (head < 0 && n_embd > 0 && n_head > 0) {
        head = n_embd / n_head;
    }
    if (head > 0 && n_rot > head) {
        refuse(path, key + " is " + std::to_string(n_rot) + ", a head has " + std::to_string(head) + " elements");
    }
}

}  // namespace atp
