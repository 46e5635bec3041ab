// The end of the program, while other threads are inside the engine.
//
// Python ends daemon threads by unwinding their stacks when they next ask for the GIL; with C++ frames on the stack,
// the process aborts. And C++ destroys the engine's globals while other threads still compute. So before Python ends,
// end_calls() asks all calls to stop and waits until they have left. From then on, a thread that calls the engine ends
// as by sys.exit().
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace atp::python {

namespace py = pybind11;

// without the GIL, and counted as a call of the engine, while it lives; made and destroyed under the GIL
class WithoutGil {
  public:
    WithoutGil();
    ~WithoutGil();
    WithoutGil(const WithoutGil &) = delete;
    WithoutGil & operator=(const WithoutGil &) = delete;

  private:
    PyThreadState * state_;
};

// with the GIL, inside such a call, while a caller's callback runs
class InCallback {
  public:
    InCallback();
    ~InCallback();
    InCallback(const InCallback &) = delete;
    InCallback & operator=(const InCallback &) = delete;

  private:
    py::gil_scoped_acquire gil_;
};

// whether the program ends and this thread is not the one that ends it
bool must_leave();

// raises SystemExit, which ends a thread without a message
[[noreturn]] void leave();

void register_at_exit(py::module_ & m);

}  // namespace atp::python
