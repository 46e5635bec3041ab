#include "engine/batch.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/calls.h"
#include "bindings/engine_handle.h"
#include "bindings/generation_args.h"

namespace atp::python {

namespace {

Started start(EngineHandle & engine, const Sequence & seq, int32_t n_predict, float temp, int32_t top_k, float top_p,
              float min_p, uint32_t seed, const std::vector<std::string> & stop, const std::string & grammar,
              bool stop_on_repetition, float repeat_penalty, float frequency_penalty, float presence_penalty,
              int32_t repeat_last_n) {
    GenerationParams params = generation_params(
        n_predict,
        {temp, top_k, top_p, min_p, seed, grammar, repeat_penalty, frequency_penalty, presence_penalty, repeat_last_n},
        stop, stop_on_repetition);
    return without_gil([&](Interrupt & interrupt) {
        return engine.use([&](Engine & e) { return e.batch().start(seq, std::move(params), interrupt); });
    });
}

std::vector<std::pair<int32_t, Result>> step(EngineHandle & engine) {
    return without_gil(
        [&](Interrupt & interrupt) { return engine.use([&](Engine & e) { return e.batch().step(interrupt); }); });
}

// a method that needs no more than the batch
template <typename R, typename... Args>
auto of_batch(R (Batch::*method)(Args...)) {
    return [method](EngineHandle & engine, Args... args) {
        const WithoutGil inside;
        return engine.use([&](Engine & e) { return (e.batch().*method)(args...); });
    };
}

void register_room(EngineClass & engine) {
    engine
        .def(
            "set_plan",
            [](EngineHandle & engine, const Plan & plan) {
                const WithoutGil inside;
                engine.use([&](Engine & e) { e.set_plan(plan); });
            },
            py::arg("plan"), "The cuts of the captions that start() begins; StageError while some are under way.")
        .def("cell_bytes", of_batch(&Batch::cell_bytes), "Bytes of one cell in each stage's caches, K and V.")
        .def_property_readonly(
            "cell_step",
            [](EngineHandle & engine) {
                const WithoutGil inside;
                return engine.use([](Engine & e) { return e.cell_step(); });
            },
            "Caches come in multiples of this many cells.")
        .def("expect", of_batch<std::vector<int32_t>, const Sequence &, int32_t>(&Batch::expect), py::arg("sequence"),
             py::arg("n_predict"),
             "Cells each stage will need for it, those of a shared text included: exact for policies that keep a fixed "
             "share, an upper bound else.")
        .def("reserve", of_batch<void, const std::vector<int32_t> &, int32_t>(&Batch::reserve), py::arg("n_cells"),
             py::arg("n_parallel"),
             "Caches for the captions that start() begins: cells per stage for all together, at most n_parallel at "
             "once. Only while none is under way; forgets the shared text.")
        .def("free_cells", of_batch(&Batch::n_free), "Cells per stage that nobody holds.");
}

}  // namespace

void register_batch(py::module_ & m, EngineClass & engine) {
    py::class_<Started>(m, "Started", "What became of a caption that start() was given.")
        .def_readonly("slot", &Started::slot, ">= 0: under way. -1: there is no room, or it has ended.")
        .def_readonly("n_cells", &Started::n_cells, "Cells it takes in each stage; without room: would take, at most.")
        .def_readonly("result", &Started::result, "Of a caption that ended with its first token, else None.")
        .def_property_readonly("ended", [](const Started & s) { return s.result.has_value(); });
    register_room(engine);
    engine
        .def("start", &start, py::arg("sequence"), py::kw_only(), py::arg("n_predict") = 128, py::arg("temp") = 0.0f,
             py::arg("top_k") = 40, py::arg("top_p") = 0.95f, py::arg("min_p") = 0.05f, py::arg("seed") = 0,
             py::arg("stop") = std::vector<std::string>{}, py::arg("grammar") = "",
             py::arg("stop_on_repetition") = false, py::arg("repeat_penalty") = 1.0f,
             py::arg("frequency_penalty") = 0.0f, py::arg("presence_penalty") = 0.0f, py::arg("repeat_last_n") = 64,
             "Prefills one caption into the reserved caches. An exception costs this caption only.")
        .def("step", &step,
             "One token for every caption under way, in one graph. Returns (slot, result) of those that ended; their "
             "slots are free again. An exception, Ctrl-C too, drops all of them.")
        .def("drop", of_batch<void, int32_t>(&Batch::drop), py::arg("slot"), "Gives up one caption.")
        .def("reset", of_batch(&Batch::reset), "Gives up all captions under way; the caches stay.")
        .def_property_readonly(
            "n_live",
            [](EngineHandle & engine) {
                const WithoutGil inside;
                return engine.use([](Engine & e) { return e.batch().n_live(); });
            },
            "Captions under way.");
}

}  // namespace atp::python
