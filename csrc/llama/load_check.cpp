#include "llama/load_check.h"

#include "base/errors.h"
#include "llama/gguf_check.h"
#include "llama/log_capture.h"
#include "llama/memory_room.h"
#include "mtmd.h"

namespace atp {

namespace {

void check_projector(const std::string & path) {
    mtmd_context_params params = mtmd_context_params_default();
    params.use_gpu = false;
    params.print_timings = false;
    params.warmup = false;
    check_room(sched_bytes(encoder_nodes), "a projector's graphs");
    log_capture::clear();
    // loads everything except the weights; the result about memory is not used
    if (mtmd_get_memory_usage(path.c_str(), params).empty()) {
        // this call logs that it failed, but not why; a real load fails at the same place and logs the reason
        log_capture::clear();
        mtmd_free(mtmd_init_from_file(path.c_str(), nullptr, params));
        throw ModelError("llama.cpp cannot load " + path + ": " + log_capture::last_error());
    }
}

}  // namespace

llama_model_ptr load_shapes(const std::string & path) {
    log_capture::install();
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.no_alloc = true;
    params.load_mode = LLAMA_LOAD_MODE_NONE;
    params.n_gpu_layers = 0;
    check_room(0, "a model");
    log_capture::clear();
    llama_model_ptr model(llama_model_load_from_file(path.c_str(), params));
    if (!model) {
        throw ModelError("llama.cpp cannot load " + path + ": " + log_capture::last_error());
    }
    return model;
}

void check_loadable(const std::string & path) {
    log_capture::install();
    if (check_gguf(path) == "clip") {
        check_projector(path);
    } else {
        load_shapes(path);
    }
}

}  // namespace atp
