// The arguments of generate() and start() that say how a caption grows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "generation.h"

namespace atp::python {

// throws AtpError for a grammar that cannot be followed, before anything is computed
GenerationParams generation_params(int32_t n_predict, float temp, int32_t top_k, float top_p, float min_p,
                                   uint32_t seed, const std::vector<std::string> & stop, const std::string & grammar,
                                   bool stop_on_repetition);

}  // namespace atp::python
