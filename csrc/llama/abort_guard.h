// While it lives, the CPU backend asks the Interrupt between graph nodes whether to go on.
#pragma once

#include "base/interrupt.h"

struct ggml_backend;

namespace atp {

class AbortGuard {
  public:
    AbortGuard(ggml_backend * cpu, Interrupt & interrupt);
    ~AbortGuard();
    AbortGuard(const AbortGuard &) = delete;
    AbortGuard & operator=(const AbortGuard &) = delete;

  private:
    ggml_backend * cpu_;
};

}  // namespace atp
