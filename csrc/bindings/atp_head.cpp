#include "atp_head.h"

#include <algorithm>

#include "atp_policy.h"
#include "bindings.h"
#include "errors.h"

namespace atp::python {

namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::vector<float> floats(const py::dict & tensors, const std::string & name, size_t n) {
    const auto array = tensors[py::str(name)].cast<Floats>();
    if (static_cast<size_t>(array.size()) != n) {
        throw ModelError(name + " must hold " + std::to_string(n) + " numbers, got " + std::to_string(array.size()));
    }
    return {array.data(), array.data() + n};
}

// the place of `name` among the names of an enum
template <typename Enum>
Enum one_of(const py::dict & fields, const char * key, const std::vector<std::string> & names) {
    const auto name = fields[key].cast<std::string>();
    const auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end()) {
        throw ModelError(std::string(key) + " cannot be '" + name + "'");
    }
    return static_cast<Enum>(at - names.begin());
}

// from AtpSidecar.metadata() and AtpSidecar.tensors
AtpWeights from_fields(const py::dict & fields, const py::dict & tensors) {
    AtpWeights w;
    w.path = w.name = fields["name"].cast<std::string>();
    w.n_layer = fields["n_layer"].cast<int32_t>();
    w.score_norm = one_of<AtpWeights::ScoreNorm>(fields, "score_norm", {"none", "relative", "minmax"});
    w.divisor = one_of<AtpWeights::Divisor>(fields, "divisor", {"rows_visible", "rows_all"});
    w.score = one_of<AtpWeights::Score>(fields, "score", {"avg", "self", "cross"});
    w.rule = one_of<AtpWeights::Rule>(fields, "rule", {"union", "redundant", "spatial"});
    w.activation = one_of<AtpWeights::Activation>(fields, "activation", {"identity", "relu", "silu"});
    w.strides = fields["strides"].cast<std::vector<int32_t>>();
    w.lambda_sample = fields["lambda_sample"].cast<double>();
    w.n_bins = fields["n_bins"].cast<int32_t>();
    w.n_hidden = fields["n_hidden"].cast<int32_t>();
    w.kept = fields["kept"].cast<std::vector<double>>();
    const size_t h = w.n_hidden;
    for (const int32_t after : fields["cuts"].cast<std::vector<int32_t>>()) {
        const std::string blk = "blk." + std::to_string(after - 1) + ".atp_";
        w.modules.push_back({after, floats(tensors, blk + "proj.weight", 2 * h * w.n_bins),
                             floats(tensors, blk + "proj.bias", h), floats(tensors, blk + "theta_r.weight", h),
                             floats(tensors, blk + "theta_s.weight", h), floats(tensors, blk + "theta_r.bias", 1)[0],
                             floats(tensors, blk + "theta_s.bias", 1)[0]});
    }
    return w;
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

std::optional<AtpBudget> to_budget(const py::object & budget) {
    if (budget.is_none()) {
        return std::nullopt;
    }
    if (py::isinstance<py::int_>(budget) && !py::isinstance<py::bool_>(budget)) {
        return AtpBudget{budget.cast<double>(), false};
    }
    if (py::isinstance<py::float_>(budget)) {
        return AtpBudget{budget.cast<double>(), true};
    }
    throw PlanError("a budget is a float (fraction of the image tokens) or an int (their count), got " +
                    py::repr(budget).cast<std::string>());
}

void register_atp_head(py::module_ & m) {
    py::class_<AtpWeights>(m, "AtpWeights", "The trained modules of one model.");
    m.def("atp_weights", &from_fields, py::arg("fields"), py::arg("tensors"),
          "From AtpSidecar.metadata() and AtpSidecar.tensors, unchecked: for tests of the mathematics.");
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
        [](const std::vector<double> & score, const std::string & norm) {
            py::dict fields;
            fields["norm"] = norm;
            return normalise(score, one_of<AtpWeights::ScoreNorm>(fields, "norm", {"none", "relative", "minmax"}));
        },
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
