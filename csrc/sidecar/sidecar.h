// The sidecar file: trained ATP modules in GGUF (docs/design/sidecar.md), and whether they belong to a model.
//
// Checks the same rules as atp_cpp.sidecar.rules. Throws ModelError naming the field, what was expected
// and what came. Does not run the modules: atp_head does.
#pragma once

#include <string>

#include "prune/atp_weights.h"

namespace atp {

class Model;

// the words of the file, in the order of the enums
inline constexpr const char * score_norm_names[] = {"none", "relative", "minmax"};
inline constexpr const char * divisor_names[] = {"rows_visible", "rows_all"};
inline constexpr const char * score_names[] = {"avg", "self", "cross"};
inline constexpr const char * rule_names[] = {"union", "redundant", "spatial"};
inline constexpr const char * activation_names[] = {"identity", "relu", "silu"};
inline constexpr const char * mode_names[] = {"thresholds", "full", "lora"};

AtpWeights load_sidecar(const std::string & path);

// compares architecture, depth, width, heads and fingerprint of the sidecar's model with `model`: "" if they are equal,
// else what differs. (load_sidecar has checked that no cut is beyond the sidecar's own depth.)
std::string why_no_pair(const AtpWeights & weights, const Model & model);
// makes the same comparison, and throws a ModelError that names both files
void check_pair(const AtpWeights & weights, const Model & model);

}  // namespace atp
