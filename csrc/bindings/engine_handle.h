// An Engine that Python may close and may call from several threads.
//
// One thread at a time computes captions; prepare and encode may run at the same time. A callback must not start a new
// call: the call would wait for itself. A forked child may use the engine of its parent, with two exceptions: a thread
// of the parent was in the engine when the process forked (its locks are held for ever), or the engine computes on a
// device, because a child cannot use the device of its parent.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <thread>

#if !defined(_WIN32)
#include <unistd.h>
#endif

#include "base/errors.h"
#include "engine/engine.h"

namespace atp::python {

namespace py = pybind11;

class EngineHandle {
  public:
    EngineHandle(const ModelParams & params, const VisionParams & vision, const std::string & atp, bool self_test)
        : engine_(new Engine(params, vision, atp, self_test)), info_(engine_->info()) {}

    void close() {
        const Use use(*this);
        const std::unique_lock<std::shared_mutex> alone(life_);
        closed_ = true;
        engine_.reset();
    }

    // needs no lock: a callback may ask it
    ModelInfo info() const {
        check_open();
        return info_;
    }

    // runs `work` on the engine beside a thread that uses it: prepare and encode only
    template <typename Work>
    auto beside(Work work) {
        check_process();
        check_no_callback();
        const std::shared_lock<std::shared_mutex> alive(life_);
        check_open();
        const Inside inside(n_inside_);
        return work(*engine_);
    }

    // holds the engine for `work`
    template <typename Work>
    auto use(Work work) {
        const Use use(*this);
        check_open();
        return work(*engine_);
    }

  private:
    // counts the calls that are in the engine
    class Inside {
      public:
        explicit Inside(std::atomic<int32_t> & n) : n_(n) { ++n_; }
        ~Inside() { --n_; }
        Inside(const Inside &) = delete;
        Inside & operator=(const Inside &) = delete;

      private:
        std::atomic<int32_t> & n_;
    };

    class Use {
      public:
        explicit Use(EngineHandle & handle) : handle_(handle), inside_(handle.checked_inside()) {
            handle.check_no_callback();
            lock_ = std::unique_lock<std::mutex>(handle.mutex_);
            handle.user_ = std::this_thread::get_id();
        }
        ~Use() { handle_.user_ = std::thread::id(); }
        Use(const Use &) = delete;
        Use & operator=(const Use &) = delete;

      private:
        EngineHandle & handle_;
        const Inside inside_;
        std::unique_lock<std::mutex> lock_;
    };

    std::atomic<int32_t> & checked_inside() {
        check_process();
        return n_inside_;
    }

    static int64_t process_id() {
#if defined(_WIN32)
        return 0;
#else
        return getpid();
#endif
    }

    // before any lock is taken
    void check_process() {
        if (pid_ == process_id()) {
            return;
        }
        const bool on_device = info_.devices.size() != 1 || info_.devices[0] != "CPU";
        if (on_device || n_inside_ > 0) {
            throw StageError(std::string("this engine was made before the process forked, and ") +
                             (on_device ? "it computes on a device, which a forked child cannot share; start processes "
                                          "by spawn instead of fork"
                                        : "the parent was computing with it then; make a new one in the child"));
        }
        pid_ = process_id();
    }

    void check_no_callback() const {
        if (user_ == std::this_thread::get_id()) {
            throw StageError(
                "this engine is busy with the caption whose callback this is; use it after generate returned");
        }
    }

    void check_open() const {
        if (closed_) {
            throw ModelError("this engine is closed; make a new one");
        }
    }

    std::mutex mutex_;
    std::shared_mutex life_;
    std::atomic<std::thread::id> user_{};
    std::atomic<bool> closed_{false};
    std::atomic<int32_t> n_inside_{0};
    std::atomic<int64_t> pid_{process_id()};  // of the process that uses it
    std::unique_ptr<Engine> engine_;
    ModelInfo info_;
};

using EngineClass = py::class_<EngineHandle>;

// the captions under way together
void register_batch(py::module_ & m, EngineClass & engine);

void register_report(py::module_ & m);

// the text a model sampled, which may be no UTF-8
py::str decode(const std::string & text);

}  // namespace atp::python
