#include "sidecar/sidecar.h"
#include "bindings/at_exit.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/registers.h"
#include "llama/fingerprint.h"
#include "llama/model.h"

namespace atp::python {

namespace {

py::array_t<float> vector(const std::vector<float> & values) {
    return py::array_t<float>(static_cast<py::ssize_t>(values.size()), values.data());
}

void register_module(py::module_ & m) {
    py::class_<AtpModule>(m, "AtpModule", "One trained module; arrays are copies.")
        .def_readonly("after", &AtpModule::after)
        .def_property_readonly(
            "proj_w",
            [](const AtpModule & a) {
                return matrix(a.proj_w, a.proj_w.size() / std::max<size_t>(1, a.proj_b.size()));
            },
            "[n_hidden, 2 * n_bins]")
        .def_property_readonly(
            "proj_b", [](const AtpModule & a) { return vector(a.proj_b); }, "[n_hidden]")
        .def_property_readonly(
            "theta_r_w", [](const AtpModule & a) { return vector(a.theta_r_w); }, "[n_hidden]")
        .def_property_readonly(
            "theta_s_w", [](const AtpModule & a) { return vector(a.theta_s_w); }, "[n_hidden]")
        .def_readonly("theta_r_b", &AtpModule::theta_r_b)
        .def_readonly("theta_s_b", &AtpModule::theta_s_b);
}

}  // namespace

void register_sidecar(py::module_ & m) {
    register_module(m);
    using W = AtpWeights;
    const auto word = [](const char * const * names, auto value) { return names[static_cast<size_t>(value)]; };
    py::class_<W>(m, "AtpWeights", "A sidecar as the engine reads it; see docs/design/sidecar.md.")
        .def_readonly("path", &W::path)
        .def_readonly("name", &W::name)
        .def_readonly("arch", &W::arch)
        .def_readonly("base_name", &W::base_name)
        .def_readonly("fingerprint", &W::fingerprint)
        .def_readonly("n_layer", &W::n_layer)
        .def_readonly("n_embd", &W::n_embd)
        .def_readonly("n_head", &W::n_head)
        .def_property_readonly("score_norm", [word](const W & w) { return word(score_norm_names, w.score_norm); })
        .def_property_readonly("divisor", [word](const W & w) { return word(divisor_names, w.divisor); })
        .def_property_readonly("score", [word](const W & w) { return word(score_names, w.score); })
        .def_property_readonly("rule", [word](const W & w) { return word(rule_names, w.rule); })
        .def_property_readonly("activation", [word](const W & w) { return word(activation_names, w.activation); })
        .def_readonly("strides", &W::strides)
        .def_readonly("lambda_sample", &W::lambda_sample)
        .def_readonly("n_bins", &W::n_bins)
        .def_readonly("n_hidden", &W::n_hidden)
        .def_readonly("modules", &W::modules)
        .def_readonly("budget", &W::budget)
        .def_readonly("kept", &W::kept)
        .def_readonly("mode", &W::mode)
        .def_readonly("data", &W::data)
        .def_property_readonly("grid", [](const W & w) { return std::make_pair(w.grid_rows, w.grid_cols); });
    m.def("load_sidecar", &load_sidecar, py::arg("path"), py::call_guard<WithoutGil>(),
          "Reads and checks a sidecar; ModelError names what is wrong with it.");
    m.def(
        "check_pair", [](const W & weights, const ModelParams & params) { check_pair(weights, Model(params)); },
        py::arg("weights"), py::arg("params"), py::call_guard<WithoutGil>(),
        "ModelError unless the sidecar was trained for this model.");
    m.def(
        "why_no_pair",
        [](const W & weights, const ModelParams & params) { return why_no_pair(weights, Model(params)); },
        py::arg("weights"), py::arg("params"), py::call_guard<WithoutGil>(),
        "What differs between this model and the sidecar's; \"\" if the sidecar was trained for it.");
    m.def(
        "model_fingerprint", [](const ModelParams & params) { return fingerprint(Model(params)).hex; },
        py::arg("params"), py::call_guard<WithoutGil>(),
        "64 hex digits that tell this model's weights from others; \"\" if a norm is missing or not F32.");
}

}  // namespace atp::python
