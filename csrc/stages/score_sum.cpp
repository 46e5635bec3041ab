#include "stages/score_sum.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>

#include "base/errors.h"
#include "llama/llama_private.h"
#include "stages/graph_cut.h"

namespace atp {

namespace {

// adds `from` to `to`; `to` grows to the length of `from`
template <typename T>
void accumulate(std::vector<T> & to, const std::vector<T> & from) {
    to.resize(std::max(to.size(), from.size()), T(0));
    std::transform(from.begin(), from.end(), to.begin(), to.begin(), std::plus<T>());
}

std::vector<float> read(const ggml_tensor * t) {
    std::vector<float> values(ggml_nelements(t));
    ggml_backend_tensor_get(t, values.data(), 0, ggml_nbytes(t));
    return values;
}

}  // namespace

ScoreSum::ScoreSum(ScoreKind kind, const Sequence & seq, const std::vector<int32_t> & live)
    : kind_(kind), giver_(live.size(), Giver::none), cell_(live.size(), -1) {
    if (kind == ScoreKind::last_row) {
        giver_.back() = Giver::last_row;
    }
    if (kind != ScoreKind::atp) {
        return;
    }
    int32_t last_image = -1;
    for (size_t i = 0; i < seq.rows.size(); ++i) {
        last_image = seq.rows[i].kind == RowKind::image ? static_cast<int32_t>(i) : last_image;
    }
    for (size_t i = 0; i < live.size(); ++i) {
        if (seq.rows[live[i]].kind == RowKind::image) {
            giver_[i] = Giver::image;
        } else if (live[i] > last_image) {
            giver_[i] = Giver::question;
            ++n_question_rows_;
        }
    }
}

size_t ScoreSum::n_nodes() const {
    constexpr size_t of_one_row = 16;
    return kind_ == ScoreKind::none ? 0 : kind_ == ScoreKind::atp ? max_map_nodes : of_one_row;
}

// a guess: the rows lie in the cells after all earlier rows, in order
std::vector<int32_t> ScoreSum::guess_reach(bool causal) const {
    const auto n = static_cast<int32_t>(rows_.size());
    std::vector<int32_t> reach(n, next_cell_ + n);
    if (causal) {
        std::iota(reach.begin(), reach.end(), next_cell_ + 1);
    }
    return reach;
}

void ScoreSum::add_nodes(ggml_context * ctx, ggml_cgraph * graph, const CutGraph & cut,
                         const std::vector<int32_t> & rows, bool causal) {
    rows_ = rows;
    tap_ = {};
    map_ = {};
    std::vector<char> wanted;
    for (const int32_t row : rows_) {
        wanted.push_back(giver_[row] != Giver::none);
    }
    const auto first = std::find(wanted.begin(), wanted.end(), 1);
    if (first == wanted.end()) {
        return;
    }
    if (kind_ == ScoreKind::last_row) {
        tap_ = add_score(ctx, graph, cut, static_cast<int32_t>(first - wanted.begin()),
                         static_cast<int32_t>(wanted.size()));
        return;
    }
    map_ = add_attention_map(ctx, graph, cut, wanted, reach_.empty() ? guess_reach(causal) : reach_);
}

bool ScoreSum::inputs_set(const CutGraph & cut) {
    if (!wanted()) {
        return true;
    }
    const bool guessed = reach_.empty();
    reach_.clear();
    if (guessed && map_.mask && !map_.blocks.empty()) {
        std::vector<int32_t> reach = read_reach(map_);
        if (!covers(map_, reach)) {
            reach_ = std::move(reach);
            return false;
        }
    }
    // read the cells now, not after compute: the allocator reuses an input's memory after the last node that reads it
    const std::vector<int32_t> cells = read_cells(cut);
    for (size_t i = 0; i < rows_.size(); ++i) {
        cell_[rows_[i]] = cells[i];
        next_cell_ = std::max(next_cell_, cells[i] + 1);
    }
    return true;
}

void ScoreSum::add_block(const MapBlock & block) {
    const std::vector<float> values = read(block.map);
    const int64_t n_cells = block.map->ne[0];
    for (int64_t r = 0; r < block.map->ne[1]; ++r) {
        const Giver giver = giver_[rows_[block.row_begin + r]];
        if (giver == Giver::none) {
            continue;
        }
        double * sum = giver == Giver::image ? self_.data() : cross_.data();
        const float * row = &values[r * n_cells];
        for (int64_t i = 0; i < n_cells; ++i) {
            sum[i] += row[i];
        }
    }
}

void ScoreSum::computed() {
    if (tap_.sum) {
        accumulate(last_row_, read(tap_.sum));
    }
    const auto n_kv = static_cast<size_t>(map_.n_kv);
    self_.resize(std::max(self_.size(), n_kv), 0.0);
    cross_.resize(std::max(cross_.size(), n_kv), 0.0);
    for (const MapBlock & block : map_.blocks) {
        add_block(block);
    }
    n_head_ = map_.blocks.empty() ? n_head_ : map_.n_head;
}

RowScores ScoreSum::finish(int32_t n_layer) const {
    RowScores out;
    bool finite = true;
    const auto per_row = [&](const auto & received, auto & sums, auto divisor) {
        for (const int32_t cell : cell_) {
            // cells after the last cell that a scored row could see received no attention
            const bool seen = cell < static_cast<int32_t>(received.size());
            sums.push_back(seen ? received[cell] / divisor : 0);
            finite = finite && std::isfinite(sums.back());
        }
    };
    if (kind_ == ScoreKind::last_row) {
        per_row(last_row_, out.last_row, 1.0f);
    }
    if (kind_ == ScoreKind::atp) {
        per_row(self_, out.self_sum, static_cast<double>(n_head_));
        per_row(cross_, out.cross_sum, static_cast<double>(n_head_));
        out.n_question_rows = n_question_rows_;
    }
    if (!finite) {
        throw StageError("the attention after " + std::to_string(n_layer) +
                         " layers is not finite; the model or the image tokens hold NaN");
    }
    return out;
}

}  // namespace atp
