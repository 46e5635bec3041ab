// The error tree of the engine. Every message names what was expected, what came and what to do.
// Python sees the same names (bindings/errors.cpp registers the base first).
#pragma once

#include <stdexcept>
#include <string>

namespace atp {

struct AtpError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// a model, projector or sidecar file that cannot be used
struct ModelError : AtpError {
    using AtpError::AtpError;
};

// an image that cannot be turned into image tokens
struct ImageError : AtpError {
    using AtpError::AtpError;
};

// a plan (cuts, policies) that this model cannot run
struct PlanError : AtpError {
    using AtpError::AtpError;
};

// a failure while stages run: the context is too small, memory is short, a backend failed
struct StageError : AtpError {
    using AtpError::AtpError;
};

// one of them: the system gives no more memory. It says nothing of the model or the plan
struct NoMemory : StageError {
    using StageError::StageError;
};

// the caller asked to stop; no failure. Bindings turn it into KeyboardInterrupt or a "cancelled" result.
struct Cancelled : std::exception {
    const char * what() const noexcept override { return "cancelled by the caller"; }
};

}  // namespace atp
