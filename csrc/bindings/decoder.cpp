#include "decoder/decoder.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/calls.h"
#include "bindings/registers.h"
#include "llama/model.h"

namespace atp::python {

namespace {

// a model with its staged decoder: the engine without images, for laws and benchmarks
struct TextDecoder {
    Model model;
    Decoder decoder;
    bool busy = false;
    explicit TextDecoder(const ModelParams & params) : model(params), decoder(model) {}
};

py::dict prefill(TextDecoder & d, const Sequence & seq, int32_t seq_id, int32_t n_predict, bool all_logits) {
    const OneCall call(d.busy);
    const PrefillResult r = without_gil(
        [&](Interrupt & interrupt) { return d.decoder.prefill(seq, {seq_id, n_predict, all_logits}, interrupt); });
    py::dict out;
    out["logits"] = matrix(r.logits, d.model.n_vocab());
    py::list kept, scores, self_sum, cross, thresholds;
    for (const CutRecord & cut : r.cuts) {
        kept.append(cut.choice.kept);
        scores.append(py::array_t<float>(cut.score.size(), cut.score.data()));
        self_sum.append(py::array_t<double>(cut.self_sum.size(), cut.self_sum.data()));
        cross.append(py::array_t<double>(cut.cross.size(), cut.cross.data()));
        if (const auto & at = cut.choice.thresholds) {
            thresholds.append(py::make_tuple(at->theta_r, at->theta_s, at->offset));
        }
    }
    out["kept"] = kept;
    out["scores"] = scores;
    out["self_sum"] = self_sum;
    out["cross"] = cross;
    out["thresholds"] = thresholds;
    out["has_room"] = r.has_room;
    out["n_cells"] = r.n_cells;
    out["n_shared"] = r.n_shared;
    return out;
}

py::array_t<float> decode(TextDecoder & d, const std::vector<std::tuple<int32_t, int32_t, int32_t>> & rows) {
    const OneCall call(d.busy);
    std::vector<DecodeRow> plain;
    for (const auto & [seq_id, token, pos] : rows) {
        plain.push_back({seq_id, token, pos});
    }
    return matrix(without_gil([&](Interrupt & interrupt) { return d.decoder.decode(plain, interrupt); }),
                  d.model.n_vocab());
}

ModelParams make_params(const std::string & path, int32_t n_gpu_layers, int32_t n_ctx, int32_t n_ubatch,
                        int32_t n_threads, const std::string & flash_attn, const std::string & type_k,
                        const std::string & type_v, int32_t n_seq_max) {
    return {path, n_gpu_layers, n_ctx, n_ubatch, n_threads, n_seq_max, flash_attn, type_k, type_v};
}

}  // namespace

void register_decoder(py::module_ & m) {
    py::class_<ModelParams>(m, "ModelParams", "How to load a decoder. n_gpu_layers -1: all. n_threads 0: chosen.")
        .def(py::init(&make_params), py::arg("path"), py::kw_only(), py::arg("n_gpu_layers") = -1,
             py::arg("n_ctx") = 4096, py::arg("n_ubatch") = 512, py::arg("n_threads") = 0,
             py::arg("flash_attn") = "auto", py::arg("type_k") = "f16", py::arg("type_v") = "f16",
             py::arg("n_seq_max") = 1);

    py::class_<TextDecoder>(m, "Decoder", "The staged decoder on rows you bring: for laws and benchmarks.")
        .def(py::init<const ModelParams &>(), py::arg("params"), py::call_guard<WithoutGil>())
        .def(
            "set_plan",
            [](TextDecoder & d, const Plan & plan) {
                const OneCall call(d.busy);
                d.decoder.set_plan(plan);
            },
            py::arg("plan"))
        .def("prefill", &prefill, py::arg("seq"), py::kw_only(), py::arg("seq_id") = 0, py::arg("n_predict") = 0,
             py::arg("all_logits") = false,
             "dict: logits float32 [n_outputs, n_vocab]; per cut, over the live image tokens: kept, and what the "
             "policy saw: scores (attention of the last row), self_sum and cross (policies that need 'atp'); "
             "thresholds (theta_r, theta_s, offset) of each cut of policy atp.")
        .def("decode", &decode, py::arg("rows"), "rows: (seq_id, token, pos) each -> logits float32 [n_rows, n_vocab].")
        .def(
            "remove",
            [](TextDecoder & d, int32_t seq_id) {
                const OneCall call(d.busy);
                d.decoder.remove(seq_id);
            },
            py::arg("seq_id"))
        .def(
            "reserve",
            [](TextDecoder & d, const std::vector<int32_t> & n_cells, int32_t n_parallel) {
                const OneCall call(d.busy);
                d.decoder.reserve(n_cells, n_parallel);
            },
            py::arg("n_cells"), py::arg("n_parallel"),
            "Common caches of so many cells each stage; prefill then shares the text before the images, and says "
            "has_room, n_cells (per stage) and n_shared (rows it did not compute).")
        .def("release",
             [](TextDecoder & d) {
                 const OneCall call(d.busy);
                 d.decoder.release();
             })
        .def(
            "self_test",
            [](TextDecoder & d, const std::vector<int32_t> & cuts) {
                const OneCall call(d.busy);
                return d.decoder.self_test(cuts);
            },
            py::arg("cuts"), "NMSE of the logits, staged at these cuts against llama_decode.")
        .def_property_readonly("legal_cuts",
                               [](TextDecoder & d) {
                                   const OneCall call(d.busy);
                                   return d.decoder.legal_cuts();
                               })
        .def_property_readonly("kv_bytes", [](const TextDecoder & d) { return d.decoder.kv_bytes(); })
        .def_property_readonly("compute_bytes", [](const TextDecoder & d) { return d.decoder.compute_bytes(); })
        .def_property_readonly("n_cells", [](const TextDecoder & d) { return d.decoder.n_cells(); })
        .def_property_readonly("n_layer", [](const TextDecoder & d) { return d.model.n_layer(); })
        .def_property_readonly("n_embd_inp", [](const TextDecoder & d) { return d.model.n_embd_inp(); })
        .def_property_readonly("n_vocab", [](const TextDecoder & d) { return d.model.n_vocab(); })
        .def_property_readonly("mrope", [](const TextDecoder & d) { return d.model.n_pos_per_embd() > 1; })
        .def_property_readonly("devices", [](const TextDecoder & d) { return d.model.devices(); });
}

}  // namespace atp::python
