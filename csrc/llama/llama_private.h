// The ONLY file that includes private llama.cpp headers. Pinned to llama.cpp 0c1e57098 (llama-cpp-python 0.3.36).
//
// What the engine relies on, to be checked at every bump of the pin:
//   llama_model       build_graph(llm_graph_params), create_memory, dev_layer, devices, hparams, arch, prec_policy,
//                     get_tensor
//   llama_context     get_cparams, graph_max_nodes (a short-lived donor context gives both)
//   llm_graph_params  filled member by member in graph_cut.cpp, never by aggregate initialisation
//   llm_graph_result  set_inputs, can_reuse, get_fused_nodes, get_ctx, inputs, t_logits
//   llm_graph_input_* embd (token and embedding leaves), attn_kv / attn_kv_iswa / attn_k / mem_hybrid (k index leaves)
//   llama_kv_cache    the constructor's order of calls: filter for every layer, then reuse followed by filter
//   llama_memory_i    state_write / state_read of one sequence, through llama_io_*: cells from one cache to another
//   llama_quant_*     compute_types over all tensors, sorted by weight_name_comparer: what the quantiser decides
//   llama_grammar_*   parser (parse_rule throws the reason), init, apply, accept_str, stacks; what grammar_check limits
//   llama_batch_*     batch_ext without a context; an allocator with two positions a token accepts position gaps
#pragma once

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "llama-batch.h"
#include "llama-context.h"
#include "llama-cpp.h"
#include "llama-ext.h"
#include "llama-grammar.h"
#include "llama-graph.h"
#include "llama-io.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid.h"
#include "llama-memory.h"
#include "llama-model-loader.h"
#include "llama-model.h"
#include "llama.h"
