// The arguments of generate() and start() that say how a caption grows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/generation.h"
#include "text/sampler.h"

namespace atp::python {

// throws AtpError for a grammar that cannot be followed, before anything is computed
GenerationParams generation_params(int32_t n_predict, SamplingParams sampling, std::vector<std::string> stop,
                                   bool stop_on_repetition);

}  // namespace atp::python
