// Rows -> llama.cpp batches, and hidden states -> tensors and back.
//
// A batch holds rows of one kind only (tokens, or embeddings). Positions may have gaps; llama.cpp's allocator accepts
// gaps only with at least two positions a token, so it is told this number at least. Knows no policy. Throws
// StageError.
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
    const float * embd = nullptr;  // [n_embd_inp]; nullptr: the row is a token
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

    // a ubatch of n_tokens rows that belong to no prompt, to build graphs for inspection; of embeddings or of token ids
    llama_ubatch dummy(int32_t n_tokens, bool embeddings);

  private:
    const Model & model_;
    std::unique_ptr<llama_batch_allocr> allocr_;
};

// hidden states of rows, each as one block of row_size floats. token_dim is the dimension of the tensor that runs over
// the tokens (1 for nearly all architectures)
class HiddenRows {
  public:
    size_t row_size() const { return row_size_; }
    std::vector<float> & data() { return data_; }
    const std::vector<float> & data() const { return data_; }

    void start(size_t n_rows);  // forgets all rows; makes room for n_rows
    // row i of the tensor <-> row `first` + batch index of i in this object
    void read(const ggml_tensor * tensor, int token_dim, const llama_ubatch & ubatch, size_t first);
    void write(ggml_tensor * tensor, int token_dim, const llama_ubatch & ubatch, size_t first) const;

  private:
    std::vector<float> data_;
    size_t n_rows_ = 0;
    size_t row_size_ = 0;
};

}  // namespace atp
