#include "llama/model.h"

#include <algorithm>
#include <thread>
#include <typeinfo>

#include "base/errors.h"
#include "llama/gguf_check.h"
#include "llama/llama_private.h"
#include "llama/log_capture.h"
#include "llama/memory_room.h"

namespace atp {

struct Model::Handles {
    llama_model_ptr model;
    std::vector<ggml_backend_ptr> backends;
    std::vector<ggml_backend_t> pointers;
    ggml_backend_t cpu = nullptr;
};

namespace {

// llama.cpp's, as its option --cache-type-k takes them
ggml_type cache_type(const std::string & name) {
    for (const ggml_type t : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                              GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1}) {
        if (name == ggml_type_name(t)) {
            return t;
        }
    }
    throw ModelError("unknown KV cache type '" + name +
                     "': expected f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0 or q5_1");
}

llama_flash_attn_type flash_attn_type(const std::string & name) {
    for (const auto t : {LLAMA_FLASH_ATTN_TYPE_AUTO, LLAMA_FLASH_ATTN_TYPE_ENABLED, LLAMA_FLASH_ATTN_TYPE_DISABLED}) {
        const char * spelled = t == LLAMA_FLASH_ATTN_TYPE_AUTO      ? "auto"
                               : t == LLAMA_FLASH_ATTN_TYPE_ENABLED ? "on"
                                                                    : "off";
        if (name == spelled) {
            return t;
        }
    }
    throw ModelError("unknown flash attention setting '" + name + "': expected auto, on or off");
}

void check_params(const ModelParams & p) {
    const auto between = [](const char * name, int32_t value, int32_t low, int32_t high) {
        if (value < low || value > high) {
            throw ModelError(std::string(name) + " must be " + std::to_string(low) + " to " + std::to_string(high) +
                             ", got " + std::to_string(value));
        }
    };
    constexpr int32_t most = 1 << 30;  // so that sums of counts stay in range
    between("n_ctx", p.n_ctx, 2, most);
    between("n_ubatch", p.n_ubatch, 1, most);
    between("n_seq_max", p.n_seq_max, 1, LLAMA_MAX_SEQ);
    between("n_gpu_layers", p.n_gpu_layers, -1, most);
    between("n_threads", p.n_threads, 0, GGML_MAX_N_THREADS);
    (void) cache_type(p.type_k);
    const bool quantized_v = ggml_is_quantized(cache_type(p.type_v));
    (void) flash_attn_type(p.flash_attn);
    if (quantized_v && p.flash_attn == "off") {
        throw ModelError("a quantised V cache (" + p.type_v +
                         ") needs flash attention; use flash_attn=on or type_v=f16");
    }
}

llama_model_ptr load(const ModelParams & p) {
    const std::string arch = check_gguf(p.path);
    if (arch == "clip") {
        throw ModelError(p.path + " is a vision projector (mmproj), not a text model: pass it as mmproj");
    }
    llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers = p.n_gpu_layers;
    check_room(0, "a model");
    log_capture::clear();
    llama_model_ptr model(llama_model_load_from_file(p.path.c_str(), mp));
    if (!model) {
        throw ModelError("llama.cpp cannot load " + p.path + " (architecture '" + arch +
                         "'): " + log_capture::last_error());
    }
    if (llama_model_has_encoder(model.get()) || !llama_model_has_decoder(model.get())) {
        throw ModelError(p.path + " (architecture '" + arch + "') is not a decoder-only model");
    }
    return model;
}

void check_vocab(const llama_model & model, const std::string & path) {
    const llama_vocab * vocab = llama_model_get_vocab(&model);
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE || llama_vocab_n_tokens(vocab) < 1) {
        throw ModelError(path + " holds no tokenizer; convert the model together with its vocabulary");
    }
}

// a quantised row must be whole blocks
void check_cache_types(const llama_model & model, ggml_type type_k, ggml_type type_v) {
    const auto check = [](const char * what, ggml_type type, uint32_t head, uint32_t il) {
        if (head % ggml_blck_size(type) != 0) {
            throw ModelError(std::string(what) + " cache type " + ggml_type_name(type) + " works in blocks of " +
                             std::to_string(ggml_blck_size(type)) + ", and the heads of layer " + std::to_string(il) +
                             " are " + std::to_string(head) + " wide; use f16");
        }
    };
    for (uint32_t il = 0; il < model.hparams.n_layer(); ++il) {
        check("K", type_k, model.hparams.n_embd_head_k(il), il);
        check("V", type_v, model.hparams.n_embd_head_v(il), il);
    }
}

void add_backend(std::vector<ggml_backend_ptr> & backends, ggml_backend_dev_t dev) {
    ggml_backend_t backend = ggml_backend_dev_init(dev, nullptr);
    if (!backend) {
        throw ModelError(std::string("cannot initialise the backend of device ") + ggml_backend_dev_name(dev) + ": " +
                         log_capture::last_error());
    }
    backends.emplace_back(backend);
}

// llama.cpp writes plm's values into the cache in a shape that it takes without flash attention only; else it aborts
void avoid_flash_attention(const llama_model & model, ModelParams & p) {
    if (model.arch != LLM_ARCH_PLM) {
        return;
    }
    if (p.flash_attn == "on" || ggml_is_quantized(cache_type(p.type_v))) {
        throw ModelError(p.path + ": llama.cpp runs architecture 'plm' without flash attention only; use "
                                  "flash_attn=off and a V cache of f32, f16 or bf16");
    }
    p.flash_attn = "off";
}

void set_threads(ggml_backend_t backend, int32_t n_threads) {
    ggml_backend_dev_t dev = ggml_backend_get_device(backend);
    ggml_backend_reg_t reg = dev ? ggml_backend_dev_backend_reg(dev) : nullptr;
    if (!reg) {
        return;
    }
    using set_fn = void (*)(ggml_backend_t, int);
    if (auto fn = reinterpret_cast<set_fn>(ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"))) {
        fn(backend, n_threads);
    }
}

}  // namespace

int32_t default_threads() {
    const int32_t n = static_cast<int32_t>(std::thread::hardware_concurrency());
    return n <= 4 ? std::max(n, 1) : n / 2;
}

Model::Model(ModelParams params) : params_(std::move(params)), handles_(new Handles) {
    log_capture::install();
    llama_backend_init();
    check_params(params_);
    if (params_.n_threads == 0) {
        params_.n_threads = default_threads();
    }
    handles_->model = load(params_);
    avoid_flash_attention(*handles_->model, params_);

    check_vocab(*handles_->model, params_.path);
    check_cache_types(*handles_->model, type_k(), type_v());

    auto & backends = handles_->backends;
    for (const auto & d : handles_->model->devices) {
        add_backend(backends, d.dev);
    }
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);
        if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_ACCEL) {
            add_backend(backends, dev);
        }
    }
    handles_->cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    if (!handles_->cpu) {
        throw ModelError("this build has no CPU backend: " + log_capture::last_error());
    }
    backends.emplace_back(handles_->cpu);
    for (const auto & b : backends) {
        set_threads(b.get(), params_.n_threads);
        handles_->pointers.push_back(b.get());
    }

    // a small context that lives only to lend its resolved parameters (RoPE scaling, flash attention, fused ops)
    const llama_context_ptr donor = new_context(256, 16);
    const llama_memory_i * memory = llama_get_memory(donor.get());
    if (!memory) {
        throw ModelError(params_.path + " (architecture '" + arch() + "') keeps no KV cache: it cannot generate text");
    }
    memory_kind_ = typeid(*memory) == typeid(llama_kv_cache)        ? MemoryKind::kv
                   : typeid(*memory) == typeid(llama_kv_cache_iswa) ? MemoryKind::kv_iswa
                                                                    : MemoryKind::other;
    cparams_ = std::make_unique<llama_cparams>(donor->get_cparams());
    cparams_->n_ctx = cparams_->n_ctx_seq = params_.n_ctx;
    cparams_->n_batch = cparams_->n_ubatch = params_.n_ubatch;
    cparams_->n_seq_max = params_.n_seq_max;
    cparams_->n_outputs_max = params_.n_ubatch;
    cparams_->kv_unified = true;
    cparams_->pipeline_parallel = false;
    cparams_->cb_eval = nullptr;
    cparams_->cb_eval_user_data = nullptr;
    max_nodes_ = donor->graph_max_nodes(std::min(params_.n_ubatch, params_.n_ctx));
}

Model::~Model() = default;

llama_context_ptr Model::new_context(int32_t n_ctx, int32_t n_ubatch, ggml_backend_sched_eval_callback cb_eval,
                                     void * cb_eval_data) const {
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = n_ctx;
    cp.n_batch = cp.n_ubatch = n_ubatch;
    cp.n_threads = cp.n_threads_batch = params_.n_threads;
    cp.flash_attn_type = flash_attn_type(params_.flash_attn);
    cp.type_k = cache_type(params_.type_k);
    cp.type_v = cache_type(params_.type_v);
    cp.swa_full = true;
    cp.kv_unified = true;
    cp.no_perf = true;
    cp.cb_eval = cb_eval;
    cp.cb_eval_user_data = cb_eval_data;
    // the graphs of hybrid and recurrent architectures have more nodes; llama_context::graph_max_nodes
    const size_t a_tensor = llama_model_is_hybrid(llama()) || llama_model_is_recurrent(llama()) ? 32 : 8;
    const size_t nodes = std::max<size_t>({1024, max_nodes_, a_tensor * llama()->n_tensors()});
    check_room(sched_bytes(nodes), "a context of llama.cpp");
    log_capture::clear();
    llama_context_ptr ctx(llama_init_from_model(handles_->model.get(), cp));
    if (!ctx) {
        throw ModelError("llama.cpp cannot make a context for " + params_.path + ": " + log_capture::last_error());
    }
    return ctx;
}

ggml_backend_sched_ptr Model::new_sched(size_t max_nodes) const {
    check_room(sched_bytes(max_nodes), "a scheduler of graphs");
    // with a GPU, the CPU's part of a graph lies in memory the GPU can copy from at full speed
    std::vector<ggml_backend_buffer_type_t> buffers;
    for (ggml_backend_t backend : handles_->pointers) {
        ggml_backend_buffer_type_t buffer = ggml_backend_get_default_buffer_type(backend);
        if (backend == handles_->cpu && !handles_->model->devices.empty()) {
            ggml_backend_buffer_type_t host = ggml_backend_dev_host_buffer_type(handles_->model->devices[0].dev);
            buffer = host ? host : buffer;
        }
        buffers.push_back(buffer);
    }
    return ggml_backend_sched_ptr(ggml_backend_sched_new(handles_->pointers.data(), buffers.data(),
                                                         static_cast<int>(buffers.size()), max_nodes, false,
                                                         cparams_->op_offload));
}

ContextLength::ContextLength(const Model & model, int32_t n_ctx)
    : model_(model), before_(static_cast<int32_t>(model.cparams_->n_ctx)) {
    model_.cparams_->n_ctx = model_.cparams_->n_ctx_seq = n_ctx;
}

ContextLength::~ContextLength() {
    model_.cparams_->n_ctx = model_.cparams_->n_ctx_seq = before_;
}

llama_model * Model::llama() const {
    return handles_->model.get();
}
const llama_vocab * Model::vocab() const {
    return llama_model_get_vocab(handles_->model.get());
}
ggml_type Model::type_k() const {
    return cache_type(params_.type_k);
}
ggml_type Model::type_v() const {
    return cache_type(params_.type_v);
}
int32_t Model::n_layer() const {
    return llama_model_n_layer(handles_->model.get());
}
int32_t Model::n_embd() const {
    return llama_model_n_embd(handles_->model.get());
}
int32_t Model::n_embd_inp() const {
    return llama_model_n_embd_inp(handles_->model.get());
}
int32_t Model::n_head() const {
    return llama_model_n_head(handles_->model.get());
}
int32_t Model::n_vocab() const {
    return llama_vocab_n_tokens(vocab());
}
int32_t Model::n_pos_per_embd() const {
    return static_cast<int32_t>(handles_->model->hparams.n_pos_per_embd());
}
std::string Model::arch() const {
    return meta("general.architecture");
}
uint64_t Model::size_bytes() const {
    return llama_model_size(handles_->model.get());
}
uint64_t Model::n_params() const {
    return llama_model_n_params(handles_->model.get());
}
int32_t Model::n_ctx_train() const {
    return llama_model_n_ctx_train(handles_->model.get());
}
ggml_backend * Model::cpu_backend() const {
    return handles_->cpu;
}
const std::vector<ggml_backend *> & Model::backends() const {
    return handles_->pointers;
}

std::string Model::meta(const std::string & key) const {
    char small[256];
    const int32_t n = llama_model_meta_val_str(handles_->model.get(), key.c_str(), small, sizeof(small));
    if (n < 0) {
        return "";
    }
    std::string value(static_cast<size_t>(n) + 1, '\0');
    llama_model_meta_val_str(handles_->model.get(), key.c_str(), value.data(), value.size());
    value.resize(n);
    return value;
}

std::string Model::chat_template() const {
    const char * text = llama_model_chat_template(handles_->model.get(), nullptr);
    return text ? text : "";
}

std::vector<std::string> Model::devices() const {
    std::vector<std::string> names;
    for (ggml_backend_t b : handles_->pointers) {
        names.emplace_back(ggml_backend_name(b));
    }
    return names;
}

bool Model::all_on_cpu() const {
    return handles_->model->devices.empty();
}

}  // namespace atp
