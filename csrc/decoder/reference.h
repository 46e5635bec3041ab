// Plain llama_decode on the same weights: the ruler for self-tests, laws and benchmarks. Nothing here is staged.
//
// It can hide rows from a layer on and capture tensors by llama.cpp's names. Both work through llama.cpp's own
// evaluation callback. Pruning must give the same result as hiding: a hidden row is computed, but no other row sees it.
// Throws StageError, ImageError, ModelError.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "llama-cpp.h"
#include "prompt/sequence.h"

struct ggml_tensor;

namespace atp {

class Model;

struct Captured {
    std::vector<int64_t> shape;  // ggml order: ne[0] first
    std::vector<float> data;
};

class Reference {
  public:
    // n_ubatch: rows computed at once, as llama.cpp's option of that name
    Reference(const Model & model, int32_t n_ctx, int32_t n_ubatch);
    ~Reference();

    // from layer `after` on, no row sees the rows listed (indices into the sequence); several may be given
    void hide(int32_t after, std::vector<int32_t> rows);
    void capture(std::vector<std::string> names);
    const std::map<std::string, std::vector<Captured>> & captured() const;  // one entry per ubatch

    // both forget what was decoded before; logits [n_outputs][n_vocab]
    std::vector<float> prefill(const Sequence & seq, bool all_logits);
    std::vector<float> decode(int32_t token, int32_t pos);

    // loads the file with llama.cpp's own LoRA loader and frees the result; throws ModelError with the loader's reason
    void load_lora(const std::string & path) const;

    void clear();

  private:
    struct Watch;
    static bool on_eval(ggml_tensor * t, bool ask, void * watch);
    void run(const Sequence & seq, const Segment & segment, bool all_logits, std::vector<float> & logits);

    const Model & model_;
    int32_t n_ubatch_;
    std::unique_ptr<Watch> watch_;
    llama_context_ptr ctx_;
};

}  // namespace atp
