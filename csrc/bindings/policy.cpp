#include "prune/policy.h"
#include "bindings/at_exit.h"
#include "prune/plan.h"

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/errors.h"
#include "bindings/live_tokens.h"
#include "bindings/registers.h"

namespace atp::python {

namespace {

// the arrays a policy sees, for Python
py::dict to_dict(const PolicyInput & in) {
    const auto ints = [](const std::vector<int32_t> & v) { return py::array_t<int32_t>(v.size(), v.data()); };
    py::dict d;
    d["index"] = ints(in.index);
    d["image"] = ints(in.image);
    d["y"] = ints(in.y);
    d["x"] = ints(in.x);
    const auto doubles = [](const std::vector<double> & v) { return py::array_t<double>(v.size(), v.data()); };
    d["score"] = py::array_t<float>(in.score.size(), in.score.data());
    d["self_sum"] = doubles(in.self_sum);
    d["cross"] = doubles(in.cross);
    d["n_visible"] = ints(in.n_visible);
    d["after"] = in.after;
    d["n_layer"] = in.n_layer;
    d["spent"] = in.spent;
    d["keep"] = in.keep;
    d["seed"] = in.seed;
    py::list images;
    for (const ImageSpan & span : in.images) {
        images.append(py::make_tuple(span.n_tokens, span.grid_rows, span.grid_cols));
    }
    d["images"] = images;
    return d;
}

constexpr std::pair<const char *, ScoreKind> score_kinds[] = {
    {"none", ScoreKind::none}, {"last_row", ScoreKind::last_row}, {"atp", ScoreKind::atp}};

ScoreKind score_kind(const std::string & name) {
    for (const auto & [known, kind] : score_kinds) {
        if (name == known) {
            return kind;
        }
    }
    throw PlanError("needs must be none, last_row or atp, got '" + name + "'");
}

// name -> what the policy asks for, in the order of the table
py::dict policy_facts() {
    py::dict out;
    for (const std::string & name : policy_names()) {
        for (const auto & [known, kind] : score_kinds) {
            if (find_policy(name).needs == kind) {
                out[py::str(name)] = known;
            }
        }
    }
    return out;
}

Policy from_callable(const py::function & fn, ScoreKind needs) {
    // held by a shared pointer whose deleter takes the GIL: the engine may drop it without
    const std::shared_ptr<py::function> held(new py::function(fn), [](py::function * f) {
        const py::gil_scoped_acquire gil;
        delete f;
    });
    return {"callable", needs, [held](const PolicyInput & in) -> Choice {
                const InCallback gil;
                const py::object kept = (*held)(to_dict(in));
                try {
                    return kept.cast<KeepList>();
                } catch (const py::cast_error &) {
                    throw PlanError("a policy must return the image-token indices to keep, got " +
                                    py::repr(kept).cast<std::string>());
                }
            }};
}

Cut make_cut(int32_t after, const py::object & policy, double keep, uint64_t seed, const std::string & needs) {
    if (py::isinstance<py::str>(policy)) {
        return {after, find_policy(policy.cast<std::string>()), keep, seed};
    }
    if (PyCallable_Check(policy.ptr())) {
        return {after, from_callable(policy.cast<py::function>(), score_kind(needs)), keep, seed};
    }
    throw PlanError("policy must be a name or a callable, got " + py::repr(policy).cast<std::string>());
}

KeepList run_policy(const std::string & name, const std::vector<float> & score, const std::vector<int32_t> & live,
                    const std::vector<std::pair<int32_t, int32_t>> & grids, double keep, uint64_t seed) {
    PolicyInput in = live_tokens(live, grids, true);
    in.keep = keep;
    in.seed = seed;
    in.score = score;
    const Policy & policy = find_policy(name);
    if (policy.needs == ScoreKind::last_row && score.size() != in.index.size()) {
        throw PlanError("policy " + name + " needs " + std::to_string(in.index.size()) + " scores, got " +
                        std::to_string(score.size()));
    }
    return policy.fn(in).kept;
}

}  // namespace

void register_policy(py::module_ & m) {
    py::class_<Cut>(m, "Cut", "A border between two stages, and the policy that decides what survives it.")
        .def(
            py::init(&make_cut), py::arg("after"), py::arg("policy"), py::arg("keep") = 1.0, py::arg("seed") = 0,
            py::kw_only(), py::arg("needs") = "none",
            "after: layers run before the cut (0: before the first layer). policy: a name, or a callable that takes a "
            "dict of arrays over the live image tokens (index, image, y, x, score) and returns the indices to keep, "
            "ascending. keep: fraction of each image's original tokens. needs, for callables: 'none', 'last_row' (then "
            "score is the attention from the prompt's last row) or 'atp' (self_sum from all image rows, cross the mean "
            "from the question's rows, n_visible image rows that see the token).")
        .def_readonly("after", &Cut::after)
        .def_readonly("keep", &Cut::keep)
        .def_readonly("seed", &Cut::seed)
        .def_property_readonly("policy", [](const Cut & c) { return c.policy.name; })
        .def("__repr__", [](const Cut & c) {
            return "Cut(after=" + std::to_string(c.after) + ", policy='" + c.policy.name +
                   "', keep=" + std::to_string(c.keep) + ")";
        });
    m.def("policy_facts", &policy_facts,
          "The policies that Cut takes by name -> the scores each needs, as `needs` has it.");
    m.def("run_policy", &run_policy, py::arg("name"), py::kw_only(), py::arg("score"), py::arg("live"),
          py::arg("grids"), py::arg("keep"), py::arg("seed") = 0,
          "One policy on plain arrays, without a model: keep list (ascending image-token indices) among `live`.");
}

}  // namespace atp::python
