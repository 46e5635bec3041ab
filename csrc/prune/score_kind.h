// Which attention of the stage before its cut a policy needs.
#pragma once

#include <cstdint>
#include <vector>

namespace atp {

// none: no scores. last_row: what each row receives from the prompt's last row (FastV). atp: what each row receives
// from the image rows and from the question rows (ATP)
enum class ScoreKind : uint8_t { none, last_row, atp };

// the attention each live row receives, mean over heads: [n_live] each, empty where it was not asked for
struct RowScores {
    std::vector<float> last_row;              // from the prompt's last row
    std::vector<double> self_sum, cross_sum;  // summed over the live image rows; over the question's rows,
    int32_t n_question_rows = 0;              // which are the live text rows behind the prompt's last image
};

}  // namespace atp
