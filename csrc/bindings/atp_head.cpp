#include "prune/atp_head.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>

#include "base/errors.h"
#include "bindings/budget.h"
#include "bindings/live_tokens.h"
#include "bindings/registers.h"
#include "prune/atp_policy.h"
#include "sidecar/sidecar.h"

namespace atp::python {

namespace {

AtpWeights::ScoreNorm score_norm(const std::string & name) {
    const auto at = std::find(std::begin(score_norm_names), std::end(score_norm_names), name);
    if (at == std::end(score_norm_names)) {
        throw PlanError("a normalisation is none, relative or minmax, got '" + name + "'");
    }
    return static_cast<AtpWeights::ScoreNorm>(at - std::begin(score_norm_names));
}

py::dict run_module(const AtpWeights & weights, size_t module, const std::vector<double> & self_sum,
                    const std::vector<double> & cross, const std::vector<int32_t> & live,
                    const std::vector<std::pair<int32_t, int32_t>> & grids, bool causal, double spent,
                    const py::object & budget) {
    PolicyInput in = live_tokens(live, grids, causal);
    if (module >= weights.modules.size() || self_sum.size() != in.index.size() || cross.size() != in.index.size()) {
        throw PlanError("expected a module below " + std::to_string(weights.modules.size()) + " and " +
                        std::to_string(in.index.size()) + " of both scores");
    }
    in.self_sum = self_sum;
    in.cross = cross;
    in.n_visible = rows_that_see(in.image, in.images);
    in.after = weights.modules[module].after;
    in.n_layer = weights.n_layer;
    in.spent = spent;
    const Choice choice = choose_atp(weights, module, to_budget(budget), in);
    py::dict out;
    out["kept"] = choice.kept;
    out["spatial"] = choice.spatial;
    out["thresholds"] =
        py::make_tuple(choice.thresholds->theta_r, choice.thresholds->theta_s, choice.thresholds->offset);
    return out;
}

}  // namespace

void register_atp_head(py::module_ & m) {
    m.def("atp_run", &run_module, py::arg("weights"), py::arg("module"), py::kw_only(), py::arg("self_sum"),
          py::arg("cross"), py::arg("live"), py::arg("grids"), py::arg("causal") = true, py::arg("spent") = 0.0,
          py::arg("budget") = py::none(),
          "What module number `module` keeps of the image tokens `live`, from the attention they receive: self_sum "
          "from the image rows (sum), cross from the question's rows (mean). spent: image tokens times layers so "
          "far. budget: float (fraction) or int (tokens), mean over layers. dict: kept, spatial, thresholds.");
    m.def(
        "atp_plan",
        [](const AtpWeights & weights, int32_t n_layer, const std::vector<int32_t> & legal_cuts,
           const py::object & budget) {
            return atp_plan(std::make_shared<const AtpWeights>(weights), to_budget(budget), n_layer, legal_cuts);
        },
        py::arg("weights"), py::kw_only(), py::arg("n_layer"), py::arg("legal_cuts"), py::arg("budget") = py::none(),
        "The cuts of policy atp for a model of that depth.");
    m.def(
        "atp_normalise",
        [](const std::vector<double> & score, const std::string & norm) { return normalise(score, score_norm(norm)); },
        py::arg("score"), py::arg("norm"));
    m.def("atp_features", &features, py::arg("score"), py::arg("n_bins"));
    m.def(
        "atp_spatial_score",
        [](int32_t y, int32_t x, std::pair<int32_t, int32_t> grid, const std::vector<int32_t> & strides,
           double lambda_sample) {
            ImageSpan span;
            span.grid_rows = grid.first;
            span.grid_cols = grid.second;
            return spatial_score(y, x, span, strides, lambda_sample);
        },
        py::arg("y"), py::arg("x"), py::kw_only(), py::arg("grid"), py::arg("strides"), py::arg("lambda_sample") = 3.0);
}

}  // namespace atp::python
