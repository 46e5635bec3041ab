#include "engine/report.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/engine_handle.h"

namespace atp::python {

namespace {

// every field, in an order of its own: a pickled report is read by the version that wrote it
auto fields(const Report & r) {
    return py::make_tuple(r.n_image_tokens, r.n_prompt, r.n_decoded, r.n_kept, r.kept, r.thresholds, r.kept_spatial,
                          r.grids, r.grid_images, r.tokens_mean, r.t_encode, r.t_prefill, r.t_decode, r.kv_bytes);
}

template <typename T>
void read(const py::tuple & state, size_t & at, T & field) {
    field = state[at++].cast<T>();
}

Report from_fields(const py::tuple & state) {
    Report r;
    if (state.size() != fields(r).size()) {
        throw AtpError("this report was pickled by another version of atp_cpp; it cannot be read");
    }
    size_t at = 0;
    read(state, at, r.n_image_tokens);
    read(state, at, r.n_prompt);
    read(state, at, r.n_decoded);
    read(state, at, r.n_kept);
    read(state, at, r.kept);
    read(state, at, r.thresholds);
    read(state, at, r.kept_spatial);
    read(state, at, r.grids);
    read(state, at, r.grid_images);
    read(state, at, r.tokens_mean);
    read(state, at, r.t_encode);
    read(state, at, r.t_prefill);
    read(state, at, r.t_decode);
    read(state, at, r.kv_bytes);
    return r;
}

py::str repr(const Report & r) {
    return py::str("Report(n_image_tokens={}, n_kept={}, tokens_mean={:.1f}, n_prompt={}, n_decoded={}, "
                   "t_encode={:.1f}, t_prefill={:.1f}, t_decode={:.1f}, kv_bytes={})")
        .format(r.n_image_tokens, r.n_kept, r.tokens_mean, r.n_prompt, r.n_decoded, r.t_encode, r.t_prefill, r.t_decode,
                r.kv_bytes);
}

}  // namespace

void register_report(py::module_ & m) {
    py::class_<Report>(m, "Report", "What one caption cost. Times in milliseconds, kv_bytes of the real buffers.")
        .def_readonly("n_image_tokens", &Report::n_image_tokens)
        .def_readonly("n_prompt", &Report::n_prompt)
        .def_readonly("n_decoded", &Report::n_decoded)
        .def_readonly("n_kept", &Report::n_kept)
        .def_readonly("kept", &Report::kept)
        .def_readonly("thresholds", &Report::thresholds)
        .def_readonly("kept_spatial", &Report::kept_spatial)
        .def_readonly("grids", &Report::grids)
        .def_readonly("grid_images", &Report::grid_images)
        .def_readonly("tokens_mean", &Report::tokens_mean)
        .def_readonly("t_encode", &Report::t_encode)
        .def_readonly("t_prefill", &Report::t_prefill)
        .def_readonly("t_decode", &Report::t_decode)
        .def_readonly("kv_bytes", &Report::kv_bytes)
        .def("__repr__", &repr)
        .def("__eq__",
             [](const Report & a, const py::object & b) {
                 return py::isinstance<Report>(b) && fields(a).equal(fields(b.cast<const Report &>()));
             })
        .def("__hash__", [](const Report & r) { return py::hash(py::make_tuple(r.n_prompt, r.n_decoded, r.t_decode)); })
        .def(py::pickle(&fields, &from_fields));
}

}  // namespace atp::python
