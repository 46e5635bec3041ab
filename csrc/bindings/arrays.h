// NumPy arrays in and out.
#pragma once

#include <pybind11/numpy.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace atp::python {

namespace py = pybind11;

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;
using IntArray = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using ImageArray = py::array_t<uint8_t, py::array::c_style>;

// "2, 3, 4"
std::string shape_text(const py::array & a);

// [rows][cols] float32, copied
py::array_t<float> matrix(const std::vector<float> & values, size_t cols);

}  // namespace atp::python
