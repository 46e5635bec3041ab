// A test device, and no part of the product: compiled only where the build has ggml's RPC backend (-DGGML_RPC=ON).
#ifdef GGML_USE_RPC

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/errors.h"
#include "bindings/registers.h"
#include "ggml-backend.h"
#include "ggml-rpc.h"

namespace atp::python {

namespace {

// Models loaded later may put layers there. ggml keeps a device for the life of the process.
std::vector<std::string> add_rpc_device(const std::string & endpoint) {
    ggml_backend_reg_t reg = ggml_backend_rpc_add_server(endpoint.c_str());
    if (!reg) {
        throw AtpError("no device at " + endpoint + "; start ggml-rpc-server there first");
    }
    ggml_backend_register(reg);
    std::vector<std::string> names;
    for (size_t i = 0; i < ggml_backend_reg_dev_count(reg); ++i) {
        names.emplace_back(ggml_backend_dev_name(ggml_backend_reg_dev_get(reg, i)));
    }
    return names;
}

}  // namespace

void register_rpc_device(py::module_ & m) {
    m.def(
        "add_rpc_device", &add_rpc_device, py::arg("endpoint"),
        "Test device only: the ggml-rpc-server at host:port becomes a device of this process, as a stand-in for a GPU. "
        "Returns the names of its devices. Not in ordinary builds.");
}

}  // namespace atp::python

#endif  // GGML_USE_RPC
