// The end of the program, while other threads are inside the engine.
//
// Python ends daemon threads by unwinding them when they next ask for the GIL; through C++ frames that is an abort. And
// C++ destroys the engine's globals under whoever still computes. So before Python ends, end_calls() asks all calls to
// stop and waits until they have left. From then on another thread that comes in is ended as by sys.exit().
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

// with the GIL, inside such a call, to run what a caller handed in
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

// raises SystemExit, which ends a thread without a word
[[noreturn]] void leave();

void register_at_exit(py::module_ & m);

}  // namespace atp::python
