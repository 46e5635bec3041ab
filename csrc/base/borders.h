// Where a model can be cut, and why not elsewhere. Plain numbers: knows no ggml.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace atp {

// the borders between layers, as layer counts
struct Borders {
    std::vector<int32_t> legal;
    std::map<int32_t, std::string> why_not;  // the reasons for all other borders
};

}  // namespace atp
