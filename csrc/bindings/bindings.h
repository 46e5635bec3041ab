// What the binding files share: one register function per noun, and how Python's signals and callables reach C++.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "anyres.h"
#include "at_exit.h"
#include "atp_policy.h"
#include "errors.h"
#include "generation.h"
#include "interrupt.h"
#include "plan.h"

namespace atp::python {

namespace py = pybind11;

void register_errors(py::module_ & m);
void register_policy(py::module_ & m);
void register_atp_head(py::module_ & m);
void register_sequence(py::module_ & m);
void register_decoder(py::module_ & m);
void register_reference(py::module_ & m);
void register_engine(py::module_ & m);
void register_grammar(py::module_ & m);
void register_tiles(py::module_ & m);
void register_sidecar(py::module_ & m);
void register_quantise(py::module_ & m);
#ifdef GGML_USE_RPC
void register_rpc_device(py::module_ & m);  // tests only
#endif

// holds an object for one call; a second call, from another thread or from a callback, is refused. Made under the GIL
class OneCall {
  public:
    explicit OneCall(bool & busy) : busy_(busy) {
        if (busy_) {
            throw StageError("this object is busy in another call; use one per thread, and not from its own callbacks");
        }
        busy_ = true;
    }
    ~OneCall() { busy_ = false; }
    OneCall(const OneCall &) = delete;
    OneCall & operator=(const OneCall &) = delete;

  private:
    bool & busy_;
};

// runs `work` without the GIL; on the main thread, Ctrl-C becomes KeyboardInterrupt within one step of the engine
// (signals reach no other thread, and asking there would only cost the lock); other threads leave when the program ends
template <typename Work>
auto without_gil(Work work) {
    std::optional<py::error_already_set> raised;
    const py::module_ threading = py::module_::import("threading");
    const bool on_main = threading.attr("current_thread")().is(threading.attr("main_thread")());
    Interrupt interrupt(on_main ? std::function<bool()>([&raised] {
        const py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) {
            raised.emplace();
            return true;
        }
        return false;
    })
                                : std::function<bool()>(must_leave));
    try {
        const WithoutGil inside;
        return work(interrupt);
    } catch (const Cancelled &) {
        if (raised) {
            throw std::move(*raised);
        }
        if (must_leave()) {
            leave();
        }
        throw;
    }
}

// what a policy sees when the image tokens `live` (ascending) are alive on patch grids of these rows and columns
PolicyInput live_tokens(const std::vector<int32_t> & live, const std::vector<std::pair<int32_t, int32_t>> & grids,
                        bool causal);

// of generate() and start(); throws AtpError for a grammar that cannot be followed
GenerationParams generation_params(int32_t n_predict, SamplingParams sampling, std::vector<std::string> stop,
                                   bool stop_on_repetition);

// None: no budget. A float is a fraction of the image tokens, an int their count; throws PlanError for others
std::optional<AtpBudget> to_budget(const py::object & budget);

using ImageArray = py::array_t<uint8_t, py::array::c_style>;

// what Python calls Tiles: pixels [n][side][side][3] and what they are of
struct Tiles {
    ImageArray pixels;
    TileSet set;
};

// "2, 3, 4"
std::string shape_text(const py::array & a);

// [rows][cols] float32, copied
py::array_t<float> matrix(const std::vector<float> & values, size_t cols);

}  // namespace atp::python
