#include "llama/abort_guard.h"

#include "ggml-cpu.h"

namespace atp {

namespace {

// called on the thread that called compute
bool stop_compute(void * interrupt) {
    return static_cast<Interrupt *>(interrupt)->poll();
}

}  // namespace

AbortGuard::AbortGuard(ggml_backend * cpu, Interrupt & interrupt) : cpu_(cpu) {
    ggml_backend_cpu_set_abort_callback(cpu_, stop_compute, &interrupt);
}

AbortGuard::~AbortGuard() {
    ggml_backend_cpu_set_abort_callback(cpu_, nullptr, nullptr);
}

}  // namespace atp
