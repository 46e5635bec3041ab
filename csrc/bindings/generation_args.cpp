#include "generation_args.h"

#include "grammar_check.h"

namespace atp::python {

GenerationParams generation_params(int32_t n_predict, float temp, int32_t top_k, float top_p, float min_p,
                                   uint32_t seed, const std::vector<std::string> & stop, const std::string & grammar,
                                   bool stop_on_repetition) {
    if (!grammar.empty()) {
        check_grammar(grammar);
    }
    GenerationParams params;
    params.sampling = {temp, top_k, top_p, min_p, seed, grammar};
    params.n_predict = n_predict;
    params.stop = stop;
    params.stop_on_repetition = stop_on_repetition;
    return params;
}

}  // namespace atp::python
