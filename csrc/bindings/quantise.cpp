#include "llama/quantise.h"
#include "bindings/at_exit.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/registers.h"

namespace atp::python {

void register_quantise(py::module_ & m) {
    m.def("quantise_types", &quantise_types, "What quantise() can write.");
    m.def("quantised_size", &quantised_size, py::arg("source"), py::arg("type"), py::call_guard<WithoutGil>(),
          "Bytes of the file that quantise() would write; reads the header of source only.");
    m.def("quantise", &quantise, py::arg("source"), py::arg("target"), py::arg("type"), py::kw_only(),
          py::arg("n_threads") = 0, py::call_guard<WithoutGil>(),
          "Writes the text model `source` (F32, F16 or BF16) once more in another type, by llama.cpp's own quantiser. "
          "Replaces target; ModelError says why not, and leaves no target behind. Ctrl-C waits until it is done.");
}

}  // namespace atp::python
