// A loaded decoder: weights, backends and the context parameters its graphs are built with.
//
// Owns llama_model and the backends. Knows no stages and no images. Every file check happens before llama.cpp is
// called, because a GGML_ASSERT there would kill the process.
// Throws ModelError; nothing stays allocated after a throw.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ggml-cpp.h"
#include "llama-cpp.h"

struct llama_cparams;

namespace atp {

struct ModelParams {
    std::string path;
    int32_t n_gpu_layers = -1;  // -1: all
    int32_t n_ctx = 4096;       // positions a sequence may reach; cells of all sequences together if n_seq_max > 1
    int32_t n_ubatch = 512;     // rows computed at once
    int32_t n_threads = 0;      // 0: one per physical core, as far as it can be told
    int32_t n_seq_max = 1;      // sequences alive in the stage caches at once
    std::string flash_attn = "auto";
    std::string type_k = "f16";
    std::string type_v = "f16";
};

// the number of threads that n_threads = 0 stands for
int32_t default_threads();

// the kind of an architecture's memory: only the first two kinds can have stage caches with the stage's layers alone
enum class MemoryKind { kv, kv_iswa, other };

class Model {
  public:
    explicit Model(ModelParams params);
    ~Model();
    Model(const Model &) = delete;
    Model & operator=(const Model &) = delete;

    const ModelParams & params() const { return params_; }
    llama_model * llama() const;
    const llama_vocab * vocab() const;
    const llama_cparams & cparams() const { return *cparams_; }

    int32_t n_layer() const;
    int32_t n_embd() const;
    int32_t n_embd_inp() const;
    int32_t n_head() const;  // of the first layer, where layers differ
    int32_t n_vocab() const;
    int32_t n_pos_per_embd() const;

    std::string arch() const;
    std::string meta(const std::string & key) const;  // "" when absent
    std::string chat_template() const;
    uint64_t size_bytes() const;
    uint64_t n_params() const;
    int32_t n_ctx_train() const;
    std::vector<std::string> devices() const;
    bool all_on_cpu() const;

    // a plain llama.cpp context on these weights, for references and self-tests
    llama_context_ptr new_context(int32_t n_ctx, int32_t n_ubatch, ggml_backend_sched_eval_callback cb_eval = nullptr,
                                  void * cb_eval_data = nullptr) const;

    MemoryKind memory_kind() const { return memory_kind_; }
    ggml_type type_k() const;
    ggml_type type_v() const;

    ggml_backend_sched_ptr new_sched(size_t max_nodes) const;

    friend class ContextLength;
    ggml_backend * cpu_backend() const;
    const std::vector<ggml_backend *> & backends() const;
    size_t max_nodes() const { return max_nodes_; }

  private:
    struct Handles;
    ModelParams params_;
    std::unique_ptr<Handles> handles_;
    std::unique_ptr<llama_cparams> cparams_;
    size_t max_nodes_ = 0;
    MemoryKind memory_kind_ = MemoryKind::other;
};

// while it lives, graphs are built as for a context of n_ctx positions (some RoPE factors depend on that length)
class ContextLength {
  public:
    ContextLength(const Model & model, int32_t n_ctx);
    ~ContextLength();
    ContextLength(const ContextLength &) = delete;
    ContextLength & operator=(const ContextLength &) = delete;

  private:
    const Model & model_;
    int32_t before_;
};

}  // namespace atp
