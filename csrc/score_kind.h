// Which attention a policy wants to see of the stage before its cut.
#pragma once

#include <cstdint>

namespace atp {

// none: no scores. last_row: what each row receives from the prompt's last row (FastV). atp: what each row receives
// from the image rows and from the question rows (ATP)
enum class ScoreKind : uint8_t { none, last_row, atp };

}  // namespace atp
