// Stands in for common/log.h while llama.cpp's test file is compiled into writer.cpp: nothing is logged.
#pragma once

#include "ggml.h"

#define LOG_LEVEL_DEBUG 4
#define LOG_LEVEL_ERROR 1

struct common_log;

inline void no_log(...) {}

#define LOG(...) no_log(__VA_ARGS__)
#define LOG_INF(...) no_log(__VA_ARGS__)
#define LOG_ERR(...) no_log(__VA_ARGS__)

inline int common_log_get_verbosity(ggml_log_level) {
    return 0;
}
inline void common_log_set_verbosity_thold(int) {}
inline common_log * common_log_main() {
    return nullptr;
}
inline void common_log_flush(common_log *) {}
