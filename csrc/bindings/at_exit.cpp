#include "bindings/at_exit.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace atp::python {

namespace {

struct Calls {
    std::mutex mutex;
    std::condition_variable changed;
    int n_inside = 0;       // calls of the engine
    int n_in_callback = 0;  // calls among them that run a caller's callback
    bool ending = false;
    std::thread::id ender;
};

// never destroyed: a daemon thread may outlive this library's globals
Calls & calls() {
    static auto * const all = new Calls;
    return *all;
}

void count(int Calls::* what, int by) {
    Calls & all = calls();
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.*what += by;
    all.changed.notify_all();
}

// false: calls still compute after `seconds`, or all calls that are left run callbacks for `callback_seconds`
bool end_calls(double seconds, double callback_seconds) {
    const py::gil_scoped_release release;  // calls that leave need the GIL
    Calls & all = calls();
    std::unique_lock<std::mutex> lock(all.mutex);
    all.ending = true;
    all.ender = std::this_thread::get_id();
    const auto for_seconds = [](double s) {
        return std::chrono::steady_clock::now() +
               std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(s));
    };
    const auto none_computes = [&all] { return all.n_inside == all.n_in_callback; };
    const auto none_is_inside = [&all] { return all.n_inside == 0; };
    const auto deadline = for_seconds(seconds);
    while (!none_is_inside()) {
        if (!all.changed.wait_until(lock, deadline, none_computes)) {
            return false;
        }
        // all calls that are left run callbacks; a callback may return or wait for ever
        if (!all.changed.wait_until(lock, for_seconds(callback_seconds),
                                    [&] { return none_is_inside() || !none_computes(); })) {
            return false;
        }
    }
    return true;
}

// in a forked child: the threads of the counted calls exist in the parent only
void forget_calls() {
    Calls & all = calls();
    new (&all) Calls;
}

}  // namespace

WithoutGil::WithoutGil() {
    if (must_leave()) {
        leave();
    }
    count(&Calls::n_inside, 1);
    state_ = PyEval_SaveThread();
}

WithoutGil::~WithoutGil() {
    PyEval_RestoreThread(state_);
    count(&Calls::n_inside, -1);  // under the GIL: when all have left, none waits for it in here
}

InCallback::InCallback() {
    count(&Calls::n_in_callback, 1);
}

InCallback::~InCallback() {
    count(&Calls::n_in_callback, -1);
}

bool must_leave() {
    Calls & all = calls();
    const std::lock_guard<std::mutex> lock(all.mutex);
    return all.ending && all.ender != std::this_thread::get_id();
}

void leave() {
    PyErr_SetNone(PyExc_SystemExit);
    throw py::error_already_set();
}

void register_at_exit(py::module_ & m) {
    m.def("_end_calls", &end_calls, py::arg("seconds"), py::arg("callback_seconds"),
          "Asks all other threads' calls to stop, waits for them, and lets none of them in any more.");
    m.def("_forget_calls", &forget_calls, "In a forked child: the parent's calls are not its own.");
}

}  // namespace atp::python
