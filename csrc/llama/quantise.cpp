#include "llama/quantise.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "base/errors.h"
#include "gguf.h"
#include "llama/gguf_check.h"
#include "llama/llama_private.h"
#include "llama/load_check.h"
#include "llama/log_capture.h"

namespace atp {

namespace fs = std::filesystem;

namespace {

struct QuantiseType {
    const char * name;
    llama_ftype ftype;
};

constexpr QuantiseType types[] = {
    {"f16", LLAMA_FTYPE_MOSTLY_F16},
    {"bf16", LLAMA_FTYPE_MOSTLY_BF16},
    {"q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},
    {"q4_k_m", LLAMA_FTYPE_MOSTLY_Q4_K_M},
};

llama_ftype ftype_of(const std::string & type) {
    std::string names;
    for (const QuantiseType & known : types) {
        if (type == known.name) {
            return known.ftype;
        }
        names += (names.empty() ? "" : ", ") + std::string(known.name);
    }
    throw ModelError("unknown type '" + type + "' to quantise to: expected one of " + names);
}

llama_model_quantize_params quantise_params(llama_ftype ftype, int32_t n_threads) {
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = ftype;
    params.nthread = n_threads;
    params.max_buf_size = n_quantise_buffer;
    return params;
}

struct FreeQuantiseState {
    void operator()(quantize_state_impl * state) const { llama_quant_free(state); }
};

// the source's header, and the type llama.cpp would give each tensor, in llama.cpp's order (its rules count layers)
struct Plan {
    gguf_context_ptr gguf;
    ggml_context_ptr context;
    std::vector<ggml_tensor *> tensors;
    std::vector<ggml_type> new_types;
};

Plan read_header(const std::string & source) {
    const std::string arch = check_gguf(source);
    if (arch == "clip") {
        throw ModelError(source + " is a vision projector (mmproj), not a text model: choose its type when it is "
                                  "converted (--mmproj-outtype)");
    }
    Plan plan;
    ggml_context * context = nullptr;
    plan.gguf.reset(gguf_init_from_file(source.c_str(), {/*.no_alloc =*/true, /*.ctx =*/&context}));
    plan.context.reset(context);
    if (!plan.gguf) {
        throw ModelError(source + " changed while it was read: " + log_capture::last_error());
    }
    if (gguf_find_key(plan.gguf.get(), "split.count") >= 0) {
        throw ModelError(source + " is one part of a split model; expected the whole: merge it with llama-gguf-split");
    }
    const size_t alignment = gguf_get_alignment(plan.gguf.get());
    if (alignment != GGUF_DEFAULT_ALIGNMENT) {
        throw ModelError(source + " is aligned to " + std::to_string(alignment) + " bytes; llama.cpp quantises files " +
                         "aligned to " + std::to_string(GGUF_DEFAULT_ALIGNMENT));
    }
    for (ggml_tensor * t = ggml_get_first_tensor(context); t; t = ggml_get_next_tensor(context, t)) {
        plan.tensors.push_back(t);
    }
    const llama_model_loader::weight_name_comparer before;
    std::sort(plan.tensors.begin(), plan.tensors.end(),
              [&before](const ggml_tensor * a, const ggml_tensor * b) { return before(a->name, b->name); });
    return plan;
}

// llama.cpp would find this out halfway through the file
void check_tensor(const std::string & source, const ggml_tensor * t, ggml_type new_type) {
    if (t->type != new_type && t->type != GGML_TYPE_F32 && t->type != GGML_TYPE_F16 && t->type != GGML_TYPE_BF16) {
        throw ModelError(source + " has tensor '" + t->name + "' in " + ggml_type_name(t->type) +
                         "; expected a model in f32, f16 or bf16");
    }
}

Plan make_plan(const std::string & source, llama_ftype ftype) {
    Plan plan = read_header(source);
    const llama_model_ptr model = load_shapes(source);  // the quantiser aborts on some that do not load
    const llama_model_quantize_params quantise = quantise_params(ftype, 1);
    const std::unique_ptr<quantize_state_impl, FreeQuantiseState> state(llama_quant_init(model.get(), &quantise));
    plan.new_types.resize(plan.tensors.size());
    llama_quant_compute_types(state.get(), ftype, plan.tensors.data(), plan.new_types.data(), plan.tensors.size());
    for (size_t i = 0; i < plan.tensors.size(); ++i) {
        check_tensor(source, plan.tensors[i], plan.new_types[i]);
    }
    return plan;
}

// the header llama.cpp will write, and the tensors behind it, each padded
uint64_t size_of(const Plan & plan, llama_ftype ftype) {
    const gguf_context_ptr out(gguf_init_empty());
    gguf_set_kv(out.get(), plan.gguf.get());
    gguf_set_val_u32(out.get(), "general.quantization_version", GGML_QNT_VERSION);
    gguf_set_val_u32(out.get(), "general.file_type", ftype);
    uint64_t size = 0;
    for (size_t i = 0; i < plan.tensors.size(); ++i) {
        const ggml_tensor * t = plan.tensors[i];
        gguf_add_tensor(out.get(), t);
        size += GGML_PAD(ggml_row_size(plan.new_types[i], t->ne[0]) * ggml_nrows(t), GGUF_DEFAULT_ALIGNMENT);
    }
    return size + gguf_get_meta_size(out.get());
}

// what can be known of the target before it is opened
void check_target(const std::string & source, const std::string & target, uint64_t needed) {
    const fs::path path = fs::u8path(target);
    std::error_code ec;
    const fs::file_status status = fs::status(path, ec);
    uint64_t replaced = 0;
    if (fs::exists(status)) {
        if (!fs::is_regular_file(status)) {
            throw ModelError("cannot write " + target + ": it is there and no file");
        }
        if (fs::equivalent(path, fs::u8path(source), ec)) {
            throw ModelError("source and target are the same file, " + target + "; name another target");
        }
        replaced = fs::file_size(path, ec);
    }
    const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
    const fs::space_info space = fs::space(folder, ec);
    if (!ec && space.available + replaced < needed) {
        throw ModelError("no space for " + target + ": it needs " + std::to_string(needed) + " bytes, " +
                         std::to_string(space.available) + " are free");
    }
    const std::ofstream probe(path, std::ios::binary | std::ios::app);
    if (!probe) {
        throw ModelError("cannot write " + target + ": " + std::strerror(errno));
    }
}

// how many of these threads can live at once: llama.cpp ends the process when one cannot be started
int32_t startable(int32_t n_threads) {
    std::mutex gate;
    std::vector<std::thread> threads;
    threads.reserve(n_threads);
    {
        const std::lock_guard<std::mutex> closed(gate);
        try {
            for (int32_t i = 0; i < n_threads; ++i) {
                threads.emplace_back([&gate] { const std::lock_guard<std::mutex> wait(gate); });
            }
        } catch (const std::system_error &) {
            // no more than these
        }
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    return static_cast<int32_t>(threads.size());
}

int32_t usable_threads(int32_t n_threads) {
    if (n_threads < 0 || n_threads > GGML_MAX_N_THREADS) {
        throw ModelError("n_threads must be 0 to " + std::to_string(GGML_MAX_N_THREADS) + ", got " +
                         std::to_string(n_threads));
    }
    if (n_threads == 0) {
        const auto cores = static_cast<int32_t>(std::thread::hardware_concurrency());
        return std::max(1, startable(std::min(cores, GGML_MAX_N_THREADS)));
    }
    const int32_t started = startable(n_threads);
    if (started < n_threads) {
        throw ModelError("of " + std::to_string(n_threads) + " threads only " + std::to_string(started) +
                         " can be started here; ask for fewer with n_threads");
    }
    return n_threads;
}

void remove_target(const std::string & target) {
    std::error_code ec;
    fs::remove(fs::u8path(target), ec);  // the caller gets the earlier error, not an error of this call
}

}  // namespace

std::vector<std::string> quantise_types() {
    std::vector<std::string> names;
    for (const QuantiseType & known : types) {
        names.emplace_back(known.name);
    }
    return names;
}

uint64_t quantised_size(const std::string & source, const std::string & type) {
    log_capture::install();
    const llama_ftype ftype = ftype_of(type);
    return size_of(make_plan(source, ftype), ftype);
}

void quantise(const std::string & source, const std::string & target, const std::string & type, int32_t n_threads) {
    log_capture::install();
    const llama_ftype ftype = ftype_of(type);
    const int32_t usable = usable_threads(n_threads);
    const uint64_t expected = size_of(make_plan(source, ftype), ftype);
    check_target(source, target, expected);
    log_capture::clear();
    const llama_model_quantize_params params = quantise_params(ftype, usable);
    const uint32_t failed = llama_model_quantize(source.c_str(), target.c_str(), &params);
    std::error_code ec;
    const uint64_t written = fs::file_size(fs::u8path(target), ec);
    if (failed != 0 || ec || written != expected) {
        remove_target(target);
        throw ModelError("cannot quantise " + source + " to " + target + " after " + std::to_string(ec ? 0 : written) +
                         " of " + std::to_string(expected) + " bytes: " + log_capture::last_error());
    }
}

}  // namespace atp
