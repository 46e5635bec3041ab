// How a call from Python runs in C++: without the GIL, one at a time where that is needed, and ended by Ctrl-C or by
// the program's end.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <optional>
#include <utility>

#include "base/errors.h"
#include "base/interrupt.h"
#include "bindings/at_exit.h"

namespace atp::python {

namespace py = pybind11;

// reserves an object for one call; a second call, from another thread or from a callback, is refused. Construct it with
// the GIL
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

}  // namespace atp::python
