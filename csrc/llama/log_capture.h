// What llama.cpp, ggml and libmtmd log, kept so that an exception can carry the reason.
//
// Their log hooks are global; each thread that asks sees what was logged on it, or by threads that never ask. Lines go
// to stderr only when set_verbose(true). Thread safe. Knows nothing of models.
#pragma once

#include <string>

namespace atp::log_capture {

// route the logs of all three libraries here; cheap to call again
void install();

void set_verbose(bool verbose);

// forget the errors this thread has seen so far; call before an operation that may fail
void clear();

// the last lines of level error (or, if there is none, warning) since clear(); empty when nothing was logged
std::string last_error();

}  // namespace atp::log_capture
