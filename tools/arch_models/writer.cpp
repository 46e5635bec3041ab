// Writes one tiny random model as a GGUF file. The hyperparameters are those of llama.cpp's tests/test-llama-archs.cpp,
// which is compiled into this file; the depth and the weights are ours.
//
//   atp_arch_models --list                 one line for each configuration: architecture, dense or moe
//   atp_arch_models ARCH KIND OUT [--layers N] [--set KEY=N] [--set KEY=N,N,...] [--scale PART=FACTOR] [--without PART]
//
// KEY is a GGUF key without the architecture's name, for whole numbers. --scale multiplies every tensor whose name
// holds PART; --without leaves it out (one that llama.cpp takes as optional).
#define main upstream_main
#include "test-llama-archs.cpp"
#undef main

#include <algorithm>

#include "../src/llama-model.h"

namespace {

struct Options {
    uint32_t n_layer = 0;  // 0: upstream's
    std::vector<std::pair<std::string, std::vector<uint32_t>>> keys;
    std::vector<std::pair<std::string, float>> scales;
    std::vector<std::string> without;
};

// the same numbers on every platform: std::normal_distribution and std::hash differ between standard libraries
class Normal {
  public:
    explicit Normal(const std::string & name) {
        uint64_t hash = 14695981039346656037ULL;
        for (const char c : name) {
            hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
        }
        generator_.seed(hash);
    }

    float next() {
        const double u = (static_cast<double>(generator_() >> 11) + 0.5) / 9007199254740992.0;
        const double v = (static_cast<double>(generator_() >> 11) + 0.5) / 9007199254740992.0;
        return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v));
    }

  private:
    std::mt19937_64 generator_;
};

bool has(const std::string & name, const char * part) {
    return name.find(part) != std::string::npos;
}

// mean and spread of a tensor: products keep the size of their input, norms scale by about one
std::pair<float, float> spread(const ggml_tensor * t) {
    const std::string name = t->name;
    const bool is_vector = ggml_nelements(t) == t->ne[0] || (t->ne[0] == 1 && ggml_nelements(t) == t->ne[1]);
    if (has(name, "norm") && has(name, ".weight")) {
        return {1.0f, 0.1f};
    }
    if (has(name, "token_embd.weight")) {
        return {0.0f, 1.0f};
    }
    return {0.0f, is_vector || has(name, ".bias") ? 0.1f : 1.0f / std::sqrt(static_cast<float>(t->ne[0]))};
}

void fill(ggml_tensor * t, void * userdata) {
    const auto & options = *static_cast<const Options *>(userdata);
    const std::string name = t->name;
    auto [mean, deviation] = spread(t);
    float scale = 1.0f;
    for (const auto & [part, value] : options.scales) {
        scale *= has(name, part.c_str()) ? value : 1.0f;
    }
    Normal normal(name);
    std::vector<float> values(ggml_nelements(t));
    for (float & value : values) {
        value = scale * (mean + deviation * normal.next());
        if (has(name, "ssm_a")) {  // the state decays
            value = -std::fabs(value) - 0.05f;
        }
    }
    if (t->type == GGML_TYPE_F32) {
        ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
    } else if (t->type == GGML_TYPE_F16) {
        std::vector<ggml_fp16_t> halves(values.size());
        ggml_fp32_to_fp16_row(values.data(), halves.data(), static_cast<int64_t>(values.size()));
        ggml_backend_tensor_set(t, halves.data(), 0, ggml_nbytes(t));
    } else if (t->type == GGML_TYPE_I32) {
        const std::vector<int32_t> zeros(values.size(), 0);
        ggml_backend_tensor_set(t, zeros.data(), 0, ggml_nbytes(t));
    } else {
        throw std::runtime_error(name + " has the type " + ggml_type_name(t->type));
    }
}

// arrays with one value for each layer go on in their own pattern
void deepen(gguf_context * gguf, const std::string & arch, uint32_t n_layer) {
    const std::string depth = arch + ".block_count";
    const uint32_t old = gguf_get_val_u32(gguf, gguf_find_key(gguf, depth.c_str()));
    gguf_set_val_u32(gguf, depth.c_str(), n_layer);
    for (const char * name :
         {"feed_forward_length", "attention.head_count", "attention.head_count_kv", "attention.sliding_window_pattern",
          "attention.indexer.types", "attention.compress_ratios", "swiglu_clamp_exp", "swiglu_clamp_shexp"}) {
        const std::string key = arch + "." + name;
        const int64_t id = gguf_find_key(gguf, key.c_str());
        if (id < 0 || gguf_get_kv_type(gguf, id) != GGUF_TYPE_ARRAY || gguf_get_arr_n(gguf, id) != old) {
            continue;
        }
        const gguf_type type = gguf_get_arr_type(gguf, id);
        const auto * data = static_cast<const uint32_t *>(gguf_get_arr_data(gguf, id));
        std::vector<uint32_t> values(n_layer);  // four bytes each, whatever they are
        for (uint32_t il = 0; il < n_layer; ++il) {
            values[il] = data[il % old];
        }
        gguf_set_arr_data(gguf, key.c_str(), type, values.data(), values.size());
    }
}

void write(const llm_arch arch, bool moe, const std::string & path, Options & options) {
    const std::string name = llm_arch_name(arch);
    const gguf_context_ptr gguf = get_gguf_ctx(arch, moe);
    if (options.n_layer > 0) {
        deepen(gguf.get(), name, options.n_layer);
    }
    for (const auto & [part, values] : options.keys) {
        const std::string key = name + "." + part;
        if (values.size() == 1) {
            gguf_set_val_u32(gguf.get(), key.c_str(), values[0]);
        } else {
            gguf_set_arr_data(gguf.get(), key.c_str(), GGUF_TYPE_UINT32, values.data(), values.size());
        }
    }
    ggml_backend_dev_t no_device = nullptr;
    llama_model_params params = llama_model_default_params();
    params.progress_callback = silent_model_load_progress;
    params.devices = &no_device;
    const llama_model_ptr model(llama_model_init_from_user(gguf.get(), fill, &options, params));
    if (!model) {
        throw std::runtime_error("llama.cpp made no model of it");
    }
    // llama_model_saver knows neither all architectures nor all of their keys
    const gguf_context_ptr out(gguf_init_empty());
    gguf_set_kv(out.get(), gguf.get());
    for (const auto & [tensor_name, tensor] : model->tensors_by_name) {
        const std::string & full = tensor_name;
        const bool left_out = std::any_of(options.without.begin(), options.without.end(),
                                          [&](const std::string & part) { return has(full, part.c_str()); });
        if (!left_out && gguf_find_tensor(out.get(), tensor->name) < 0) {
            gguf_add_tensor(out.get(), tensor);
        }
    }
    if (!gguf_write_to_file(out.get(), path.c_str(), false)) {
        throw std::runtime_error("cannot write " + path);
    }
}

void list() {
    for (const llm_arch arch : llm_arch_all()) {
        if (arch == LLM_ARCH_UNKNOWN || arch == LLM_ARCH_CLIP) {
            continue;
        }
        if (!moe_mandatory(arch)) {
            printf("%s dense\n", llm_arch_name(arch));
        }
        if (moe_implemented(arch)) {
            printf("%s moe\n", llm_arch_name(arch));
        }
    }
}

std::vector<uint32_t> numbers(const std::string & text) {
    std::vector<uint32_t> values;
    size_t at = 0;
    while (at < text.size()) {
        const size_t comma = std::min(text.find(',', at), text.size());
        values.push_back(static_cast<uint32_t>(std::stoul(text.substr(at, comma - at))));
        at = comma + 1;
    }
    return values;
}

Options parse(int argc, char ** argv) {
    Options options;
    for (int i = 4; i + 1 < argc; i += 2) {
        const std::string option = argv[i];
        const std::string value = argv[i + 1];
        const size_t at = value.find('=');
        if (option == "--layers") {
            options.n_layer = static_cast<uint32_t>(std::stoul(value));
        } else if (option == "--without") {
            options.without.push_back(value);
        } else if (at == std::string::npos) {
            throw std::runtime_error(option + " " + value + ": expected NAME=VALUE");
        } else if (option == "--set") {
            options.keys.emplace_back(value.substr(0, at), numbers(value.substr(at + 1)));
        } else if (option == "--scale") {
            options.scales.emplace_back(value.substr(0, at), std::stof(value.substr(at + 1)));
        } else {
            throw std::runtime_error("unknown option " + option);
        }
    }
    return options;
}

}  // namespace

int main(int argc, char ** argv) {
    (void) upstream_main;
    if (argc == 2 && std::string(argv[1]) == "--list") {
        list();
        return 0;
    }
    try {
        const llm_arch arch = argc < 4 ? LLM_ARCH_UNKNOWN : llm_arch_from_string(argv[1]);
        if (arch == LLM_ARCH_UNKNOWN) {
            throw std::runtime_error("expected ARCH KIND OUT, or --list");
        }
        Options options = parse(argc, argv);
        write(arch, std::string(argv[2]) == "moe", argv[3], options);
        return 0;
    } catch (const std::exception & error) {
        fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
