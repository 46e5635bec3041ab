// Rows -> llama.cpp batches, and hidden states -> tensors and back.
//
// A batch holds rows of one kind only (tokens, or embeddings); positions may have gaps, which llama.cpp's allocator
// accepts only when it believes in at least two positions a token. Knows no policy. Throws StageError.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "prompt/sequence.h"

struct ggml_tensor;
struct llama_ubatch;
struct llama_memory_i;
struct llama_memory_context_i;
class llama_batch_allocr;

namespace atp {

class Model;

// one row to place in a cache
struct BatchRow {
    const int32_t * pos = nullptr;  // [4]
    int32_t token = -1;
    const float * embd = nullptr;  // [n_embd_inp]; nullptr: the token is used
    int32_t seq_id = 0;
    bool output = false;
};

class Batcher {
  public:
    explicit Batcher(const Model & model);
    ~Batcher();

    // finds cells for the rows and splits them into ubatches of at most n_ubatch rows
    std::unique_ptr<llama_memory_context_i> place(llama_memory_i & memory, const std::vector<BatchRow> & rows,
                                                  int32_t n_ubatch);

    // a ubatch of n_tokens rows that stands for no prompt, for looking at graphs; of embeddings or of token ids
    llama_ubatch dummy(int32_t n_tokens, bool embeddings);

  private:
    const Model & model_;
    std::unique_ptr<llama_batch_allocr> allocr_;
};

// hidden states of rows, each as one block of row_size floats, whatever dimension the architecture keeps tokens in.
// token_dim is that dimension of the tensor (1 for nearly all architectures)
class HiddenRows {
  public:
    size_t row_size() const { return row_size_; }
    std::vector<float> & data() { return data_; }
    const std::vector<float> & data() const { return data_; }

    void start(size_t n_rows);  // forget; room for n_rows
    // row i of the tensor <-> row first + batch index of i here
    void read(const ggml_tensor * tensor, int token_dim, const llama_ubatch & ubatch, size_t first);
    void write(ggml_tensor * tensor, int token_dim, const llama_ubatch & ubatch, size_t first) const;

  private:
    std::vector<float> data_;
    size_t n_rows_ = 0;
    size_t row_size_ = 0;
};

}  // namespace atp
