// Is this file a whole GGUF? Asked before llama.cpp gets it, because it would end the process on some files.
//
// Throws ModelError naming what the file is instead. Keys are checked in key_check.
#pragma once

#include <string>

namespace atp {

// a regular file that begins as a GGUF does; `what` names what was expected ("model", "sidecar")
void check_gguf_start(const std::string & path, const char * what);

// the general.architecture of a GGUF, after checking that the file exists, is a GGUF and is not cut short
std::string check_gguf(const std::string & path);

}  // namespace atp
