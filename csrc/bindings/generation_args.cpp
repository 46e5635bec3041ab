#include "bindings/generation_args.h"

#include <utility>

#include "text/grammar_check.h"

namespace atp::python {

GenerationParams generation_params(int32_t n_predict, SamplingParams sampling, std::vector<std::string> stop,
                                   bool stop_on_repetition) {
    if (!sampling.grammar.empty()) {
        check_grammar(sampling.grammar);
    }
    GenerationParams params;
    params.sampling = std::move(sampling);
    params.n_predict = n_predict;
    params.stop = std::move(stop);
    params.stop_on_repetition = stop_on_repetition;
    return params;
}

}  // namespace atp::python
