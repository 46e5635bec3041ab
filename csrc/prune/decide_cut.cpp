#include "prune/decide_cut.h"

#include <algorithm>
#include <string>

#include "base/errors.h"
#include "prune/atp_head.h"

namespace atp {

namespace {

PolicyInput show(const Cut & cut, const Sequence & seq, const std::vector<int32_t> & live, const RowScores & scores) {
    PolicyInput in;
    in.images = seq.images;
    in.keep = cut.keep;
    in.seed = cut.seed;
    in.after = cut.after;
    for (size_t i = 0; i < live.size(); ++i) {
        const Row & row = seq.rows[live[i]];
        if (row.kind != RowKind::image) {
            continue;
        }
        const ImageSpan & span = seq.images[row.image];
        in.index.push_back(row.index);
        in.image.push_back(row.image);
        in.y.push_back(span.y(row.index));
        in.x.push_back(span.x(row.index));
        if (cut.policy.needs == ScoreKind::last_row) {
            in.score.push_back(scores.last_row[i]);
        }
        if (cut.policy.needs == ScoreKind::atp) {
            in.self_sum.push_back(scores.self_sum[i]);
            in.cross.push_back(scores.cross_sum[i] / scores.n_question_rows);
        }
    }
    if (cut.policy.needs == ScoreKind::atp) {
        in.n_visible = rows_that_see(in.image, in.images);
    }
    return in;
}

}  // namespace

CutRecord decide_cut(const Cut & cut, const Sequence & seq, const std::vector<int32_t> & live, const RowScores & scores,
                     const Progress & progress) {
    PolicyInput in = show(cut, seq, live, scores);
    if (in.index.empty()) {
        return {};
    }
    in.n_layer = progress.n_layer;
    in.spent = progress.spent;
    CutRecord out;
    out.choice = cut.policy.fn(in);
    KeepList & kept = out.choice.kept;
    check_keep_list(in, kept, cut.policy.name);
    // the last row of the prompt predicts the first token and gives the scores, so it is kept even if it is part of an
    // image
    const Row & last = seq.rows.back();
    const auto at = std::lower_bound(kept.begin(), kept.end(), last.index);
    if (last.kind == RowKind::image && (at == kept.end() || *at != last.index)) {
        kept.insert(at, last.index);
    }
    out.score = std::move(in.score);
    out.self_sum = std::move(in.self_sum);
    out.cross = std::move(in.cross);
    return out;
}

int32_t n_live_image_tokens(const Sequence & seq, const std::vector<int32_t> & live) {
    return static_cast<int32_t>(
        std::count_if(live.begin(), live.end(), [&](int32_t row) { return seq.rows[row].kind == RowKind::image; }));
}

void check_plan_for(const Plan & plan, const Sequence & seq) {
    if (seq.n_image_tokens() == 0 || seq.rows.back().kind != RowKind::image) {
        return;
    }
    for (const Cut & cut : plan) {
        if (cut.policy.needs == ScoreKind::atp) {
            throw PlanError("policy " + cut.policy.name + " after " + std::to_string(cut.after) +
                            " layers needs text after the image: it asks what the question looks at, and this prompt "
                            "ends with an image; put the question behind it, or use another policy");
        }
    }
}

}  // namespace atp
