// Whether llama.cpp loads a file: its architecture, hyperparameters, and the name and shape of every tensor.
//
// Reads headers only: the weights may be a hole. Takes address space for them, but no memory.
// Throws ModelError with llama.cpp's reason. Knows no sidecars.
#pragma once

#include <string>

#include "llama-cpp.h"

namespace atp {

// a text model without weights
llama_model_ptr load_shapes(const std::string & path);

// a text model, or a vision projector (mmproj)
void check_loadable(const std::string & path);

}  // namespace atp
