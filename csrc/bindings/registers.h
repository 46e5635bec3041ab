// One register function for each noun, called by module.cpp and written in the noun's own file.
#pragma once

#include <pybind11/pybind11.h>

namespace atp::python {

namespace py = pybind11;

void register_errors(py::module_ & m);
void register_policy(py::module_ & m);
void register_atp_head(py::module_ & m);
void register_sequence(py::module_ & m);
void register_decoder(py::module_ & m);
void register_reference(py::module_ & m);
void register_engine(py::module_ & m);
void register_grammar(py::module_ & m);
void register_tiles(py::module_ & m);
void register_sidecar(py::module_ & m);
void register_quantise(py::module_ & m);
#ifdef GGML_USE_RPC
void register_rpc_device(py::module_ & m);  // tests only
#endif

}  // namespace atp::python
