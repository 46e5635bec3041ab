#include "bindings/arrays.h"

namespace atp::python {

std::string shape_text(const py::array & a) {
    std::string shape;
    for (py::ssize_t d = 0; d < a.ndim(); ++d) {
        shape += (d ? ", " : "") + std::to_string(a.shape(d));
    }
    return shape;
}

py::array_t<float> matrix(const std::vector<float> & values, size_t cols) {
    const std::vector<py::ssize_t> shape = {static_cast<py::ssize_t>(values.size() / cols),
                                            static_cast<py::ssize_t>(cols)};
    return py::array_t<float>(shape, values.data());
}

}  // namespace atp::python
