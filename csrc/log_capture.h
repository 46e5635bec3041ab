// What llama.cpp, ggml and libmtmd log, kept so that an exception can carry the reason.
//
// One sink for the process (their log hooks are global). Lines go to stderr only when set_verbose(true).
// Thread safe. Knows nothing of models.
#pragma once

#include <string>

namespace atp::log_capture {

// route the logs of all three libraries into this sink; cheap to call again
void install();

void set_verbose(bool verbose);

// forget the errors seen so far, by the whole process; call before an operation that may fail
void clear();

// the last lines of level error (or, if there is none, warning) since clear(); empty when nothing was logged
std::string last_error();

}  // namespace atp::log_capture
