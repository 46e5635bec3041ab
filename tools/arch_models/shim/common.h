// Stands in for common/common.h while llama.cpp's test file is compiled into writer.cpp, which runs no model.
#pragma once

#include "llama.h"

struct common_batch {
    explicit common_batch(llama_context *) {}
    void clear() {}
    void add(llama_token, llama_pos, llama_seq_id, bool) {}
    llama_batch_ext * get() { return nullptr; }
};

inline void common_init() {}
