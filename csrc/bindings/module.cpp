#include "bindings/at_exit.h"
#include "bindings/registers.h"
#include "llama/log_capture.h"

PYBIND11_MODULE(_core, m) {
    namespace atp_py = atp::python;
    m.doc() = "The engine of atp_cpp: llama.cpp decoders run in stages, with image tokens dropped between them.";
    m.attr("__version__") = ATP_VERSION;
    m.def("set_verbose", &atp::log_capture::set_verbose, pybind11::arg("verbose"),
          "Pass the logs of llama.cpp, ggml and libmtmd on to stderr.");
    atp_py::register_at_exit(m);
    atp_py::register_errors(m);
    atp_py::register_policy(m);
    atp_py::register_sequence(m);
    atp_py::register_decoder(m);
    atp_py::register_reference(m);
    atp_py::register_tiles(m);
    atp_py::register_engine(m);
    atp_py::register_grammar(m);
    atp_py::register_sidecar(m);
    atp_py::register_atp_head(m);
    atp_py::register_quantise(m);
#ifdef GGML_USE_RPC
    atp_py::register_rpc_device(m);
#endif
}
