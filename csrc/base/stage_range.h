// The layers of one stage: a plan names them, and stages, caches and graphs are made for them.
#pragma once

#include <cstdint>

namespace atp {

struct StageRange {
    int32_t il_first = 0;
    int32_t il_last = 0;  // exclusive
};

}  // namespace atp
