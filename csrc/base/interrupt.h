// Asking the caller, now and then, whether to go on.
//
// poll() may take a lock in the caller's language, so it is called at most every 100 ms. poll() must not throw: the
// caller stores an exception and raises it after the engine has unwound with Cancelled.
#pragma once

#include <chrono>
#include <functional>

#include "base/errors.h"

namespace atp {

class Interrupt {
  public:
    Interrupt() = default;
    explicit Interrupt(std::function<bool()> should_stop) : should_stop_(std::move(should_stop)) {}

    // true when the caller wants to stop; remembered
    bool poll() {
        if (!stopped_ && should_stop_) {
            const auto now = std::chrono::steady_clock::now();
            if (now - last_ > std::chrono::milliseconds(100)) {
                last_ = now;
                stopped_ = should_stop_();
            }
        }
        return stopped_;
    }

    void check() {
        if (poll()) {
            throw Cancelled();
        }
    }

  private:
    std::function<bool()> should_stop_;
    std::chrono::steady_clock::time_point last_{};
    bool stopped_ = false;
};

}  // namespace atp
