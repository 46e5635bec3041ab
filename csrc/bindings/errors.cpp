#include "errors.h"

#include "bindings.h"

namespace atp::python {

void register_errors(py::module_ & m) {
    // pybind11 asks the translators in reverse order of registration, so the base comes first
    const auto base = py::register_exception<AtpError>(m, "AtpError");
    py::register_exception<ModelError>(m, "ModelError", base);
    py::register_exception<ImageError>(m, "ImageError", base);
    py::register_exception<PlanError>(m, "PlanError", base);
    py::register_exception<StageError>(m, "StageError", base);
}

}  // namespace atp::python
