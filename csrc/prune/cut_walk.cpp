#include "prune/cut_walk.h"

#include <numeric>

namespace atp {

CutWalk::CutWalk(const Plan & plan, const Sequence & seq, int32_t n_layer, int32_t first_row)
    : seq_(seq), live_(seq.rows.size() - first_row), progress_{n_layer, 0.0}, cut_(plan.begin()), end_(plan.end()) {
    std::iota(live_.begin(), live_.end(), first_row);
}

int32_t CutWalk::n_image_tokens() const {
    return n_live_image_tokens(seq_, live_);
}

const Cut * CutWalk::due() const {
    return cut_ != end_ && cut_->after == done_ ? &*cut_ : nullptr;
}

void CutWalk::keep(const KeepList & kept, size_t row_size, std::vector<float> & hidden) {
    compact(seq_, kept, row_size, live_, hidden);
    ++cut_;
}

void CutWalk::keep_all() {
    ++cut_;
}

StageRange CutWalk::stage() const {
    return {done_, cut_ != end_ ? cut_->after : progress_.n_layer};
}

ScoreKind CutWalk::needs() const {
    return cut_ != end_ && n_image_tokens() > 0 ? cut_->policy.needs : ScoreKind::none;
}

void CutWalk::pass() {
    const StageRange range = stage();
    progress_.spent += static_cast<double>(n_image_tokens()) * (range.il_last - range.il_first);
    done_ = range.il_last;
}

}  // namespace atp
