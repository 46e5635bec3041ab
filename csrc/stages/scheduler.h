// One ggml scheduler, and so one compute buffer, for graphs of several stages in turn.
//
// ggml's allocator reuses its last plan for every graph with the same number of nodes of the same sizes. Two stages can
// have such graphs although their tensors are alive at different times: call forget_plan() between two stages. The
// buffer stays.
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
    size_t bytes() const;  // bytes of the compute buffers on all backends

  private:
    ggml_backend_sched_ptr sched_;
};

}  // namespace atp
