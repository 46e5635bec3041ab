// One ggml scheduler, and so one compute buffer, for graphs of several stages in turn.
//
// ggml's allocator replays its last plan for any graph with as many nodes of the same sizes, and two stages can look
// alike to it while their tensors live differently: forget_plan() must come between them. The buffer stays.
#pragma once

#include <cstddef>

#include "ggml-cpp.h"

namespace atp {

class Model;

class Scheduler {
  public:
    explicit Scheduler(const Model & model);

    void forget_plan();
    ggml_backend_sched * get() const { return sched_.get(); }
    size_t bytes() const;  // of the compute buffers, on all backends

  private:
    ggml_backend_sched_ptr sched_;
};

}  // namespace atp
