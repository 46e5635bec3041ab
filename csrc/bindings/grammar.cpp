#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/at_exit.h"
#include "bindings/registers.h"
#include "text/grammar_check.h"
#include "text/json_schema.h"
#include "text/repetition.h"

namespace atp::python {

namespace {

using Loop = std::pair<size_t, size_t>;

std::optional<Loop> find_repetition(const std::vector<int32_t> & tokens) {
    Repetition repetition;
    for (const int32_t token : tokens) {
        if (repetition.push(token)) {
            return Loop{repetition.end_of_first_round() - repetition.period(), repetition.period()};
        }
    }
    return std::nullopt;
}

}  // namespace

void register_grammar(py::module_ & m) {
    m.def("check_grammar", &check_grammar, py::arg("gbnf"), py::call_guard<WithoutGil>(),
          "AtpError with the reason unless llama.cpp can follow the grammar, in bounded time and memory.");
    m.def("json_schema_to_grammar", &grammar_of_schema, py::arg("schema_json"), py::call_guard<WithoutGil>(),
          "The grammar of a JSON schema's values, by llama.cpp's converter; AtpError with its reason. It passes over "
          "keywords that it does not know: atp_cpp.options.json_schema refuses them first.");
    m.def("find_repetition", &find_repetition, py::arg("tokens"),
          "(start, period) of the first loop that a caption of these tokens would be ended for, or None.");
}

}  // namespace atp::python
