#include "llama/log_capture.h"

#include <atomic>
#include <cstdio>
#include <deque>
#include <mutex>

#include "ggml.h"
#include "llama.h"
#include "mtmd-helper.h"

namespace atp::log_capture {

namespace {

constexpr size_t n_lines_kept = 4;
constexpr size_t n_bytes_said = 320;  // llama.cpp quotes texts of the file, whatever their length

struct Lines {
    std::deque<std::string> errors;
    std::deque<std::string> warnings;
    ggml_log_level last_level = GGML_LOG_LEVEL_INFO;
    bool asked = false;  // the thread calls clear() and last_error()

    bool empty() const { return errors.empty() && warnings.empty(); }
    void clear() {
        errors.clear();
        warnings.clear();
    }
};

// llama.cpp mostly logs on the thread that called it
Lines & mine() {
    static thread_local Lines instance;
    return instance;
}

// the messages of llama.cpp's own threads
struct Others {
    std::mutex mutex;
    Lines lines;
};

Others & others() {
    static Others instance;
    return instance;
}

std::atomic<bool> verbose{false};
std::once_flag installed;

void keep(std::deque<std::string> & lines, const char * text, bool continued) {
    std::string line(text);
    while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) {
        line.pop_back();
    }
    if (line.empty()) {
        return;
    }
    for (size_t at = line.find('\n'); at != std::string::npos; at = line.find('\n', at)) {
        line.replace(at, 1, "; ");  // an error message is one line
    }
    if (continued && !lines.empty()) {
        lines.back() += line;
        return;
    }
    lines.push_back(std::move(line));
    if (lines.size() > n_lines_kept) {
        lines.pop_front();
    }
}

void on_log(ggml_log_level level, const char * text, void * /*user_data*/) {
    try {
        std::unique_lock<std::mutex> lock(others().mutex, std::defer_lock);
        if (!mine().asked) {
            lock.lock();
        }
        Lines & s = mine().asked ? mine() : others().lines;
        const bool continued = level == GGML_LOG_LEVEL_CONT;
        const ggml_log_level effective = continued ? s.last_level : level;
        s.last_level = effective;
        if (effective == GGML_LOG_LEVEL_ERROR) {
            keep(s.errors, text, continued);
        } else if (effective == GGML_LOG_LEVEL_WARN) {
            keep(s.warnings, text, continued);
        }
    } catch (const std::exception &) {
        fputs("atp_cpp: out of memory while keeping a log line\n", stderr);  // nothing may be thrown across C
    }
    if (verbose) {
        fputs(text, stderr);
    }
}

std::string join(const std::deque<std::string> & lines) {
    std::string out;
    for (const auto & line : lines) {
        out += out.empty() ? line : "; " + line;
    }
    return out;
}

// the beginning and the end of a long text; no character is cut
std::string shortened(const std::string & text) {
    if (text.size() <= n_bytes_said) {
        return text;
    }
    const auto inside = [&](size_t at) { return at < text.size() && (text[at] & 0xC0) == 0x80; };
    size_t head = n_bytes_said / 2;
    size_t tail = text.size() - n_bytes_said / 2;
    while (head > 0 && inside(head)) {
        --head;
    }
    while (inside(tail)) {
        ++tail;
    }
    return text.substr(0, head) + " … " + text.substr(tail);
}

}  // namespace

void install() {
    std::call_once(installed, [] {
        llama_log_set(on_log, nullptr);
        mtmd_helper_log_set(on_log, nullptr);
    });
}

void set_verbose(bool on) {
    verbose = on;
}

void clear() {
    mine().asked = true;
    mine().clear();
    const std::lock_guard<std::mutex> lock(others().mutex);
    others().lines.clear();
}

std::string last_error() {
    const std::lock_guard<std::mutex> lock(others().mutex);
    const Lines & s = mine().empty() ? others().lines : mine();
    return shortened(join(s.errors.empty() ? s.warnings : s.errors));
}

}  // namespace atp::log_capture
