#include "decoder/reference.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/calls.h"
#include "bindings/registers.h"
#include "llama/model.h"

namespace atp::python {

namespace {

struct PlainDecoder {
    Model model;
    Reference reference;
    bool busy = false;
    explicit PlainDecoder(const ModelParams & params)
        : model(params), reference(model, params.n_ctx, params.n_ubatch) {}
};

py::dict captured(const PlainDecoder & d) {
    py::dict out;
    for (const auto & [name, parts] : d.reference.captured()) {
        py::list arrays;
        for (const Captured & c : parts) {
            const std::vector<py::ssize_t> shape(c.shape.rbegin(), c.shape.rend());
            arrays.append(py::array_t<float>(shape, c.data.data()));
        }
        out[py::str(name)] = arrays;
    }
    return out;
}

}  // namespace

void register_reference(py::module_ & m) {
    py::class_<PlainDecoder>(m, "Reference", "Plain llama_decode on the same build: the ruler of laws and benchmarks.")
        .def(py::init<const ModelParams &>(), py::arg("params"), py::call_guard<WithoutGil>())
        .def(
            "hide",
            [](PlainDecoder & d, int32_t after, std::vector<int32_t> rows) {
                const OneCall call(d.busy);
                d.reference.hide(after, std::move(rows));
            },
            py::arg("after"), py::arg("rows"), "From layer `after` on, no row sees these rows.")
        .def(
            "capture",
            [](PlainDecoder & d, std::vector<std::string> names) {
                const OneCall call(d.busy);
                d.reference.capture(std::move(names));
            },
            py::arg("names"), "Keep copies of tensors by llama.cpp's names, one per ubatch.")
        .def_property_readonly("captured", &captured, "dict name -> list of float32 arrays, slowest dimension first.")
        .def(
            "prefill",
            [](PlainDecoder & d, const Sequence & seq, bool all_logits) {
                const OneCall call(d.busy);
                std::vector<float> logits;
                {
                    const WithoutGil inside;
                    logits = d.reference.prefill(seq, all_logits);
                }
                return matrix(logits, d.model.n_vocab());
            },
            py::arg("seq"), py::kw_only(), py::arg("all_logits") = false)
        .def(
            "decode",
            [](PlainDecoder & d, int32_t token, int32_t pos) {
                const OneCall call(d.busy);
                std::vector<float> logits;
                {
                    const WithoutGil inside;
                    logits = d.reference.decode(token, pos);
                }
                return matrix(logits, d.model.n_vocab());
            },
            py::arg("token"), py::arg("pos"))
        .def(
            "load_lora",
            [](PlainDecoder & d, const std::string & path) {
                const OneCall call(d.busy);
                d.reference.load_lora(path);
            },
            py::arg("path"), "Gives the file to llama.cpp's own LoRA loader; ModelError with what it says.")
        .def("clear", [](PlainDecoder & d) {
            const OneCall call(d.busy);
            d.reference.clear();
        });
}

}  // namespace atp::python
