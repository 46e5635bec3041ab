// What the binding files share: one register function per noun, and how Python's signals and callables reach C++.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "interrupt.h"
#include "plan.h"

namespace atp::python {

namespace py = pybind11;

void register_errors(py::module_ & m);
void register_policy(py::module_ & m);
void register_sequence(py::module_ & m);
void register_decoder(py::module_ & m);
void register_reference(py::module_ & m);
void register_engine(py::module_ & m);
#ifdef GGML_USE_RPC
void register_rpc_device(py::module_ & m);  // tests only
#endif

// runs `work` without the GIL; Ctrl-C becomes KeyboardInterrupt within one step of the engine
template <typename Work>
auto without_gil(Work work) {
    std::optional<py::error_already_set> raised;
    Interrupt interrupt([&raised] {
        const py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) {
            raised.emplace();
            return true;
        }
        return false;
    });
    try {
        const py::gil_scoped_release release;
        return work(interrupt);
    } catch (const Cancelled &) {
        if (raised) {
            throw std::move(*raised);
        }
        throw;
    }
}

// [rows][cols] float32, copied
py::array_t<float> matrix(const std::vector<float> & values, size_t cols);

}  // namespace atp::python
