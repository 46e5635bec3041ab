#include "prune/expected.h"

#include "prune/cut_walk.h"

namespace atp {

namespace {

struct BlindChoice {
    KeepList kept;
    bool added_last = false;  // the prompt's last row was added to the choice of the stand-in
};

// the choice of the policy's stand-in, which needs no scores
BlindChoice choose_blind(const CutWalk & walk, const Sequence & seq) {
    const Cut & cut = *walk.due();
    Cut blind = cut;
    size_t n_chosen = 0;
    blind.policy.fn = [&](const PolicyInput & in) {
        Choice choice = cut.policy.stand_in(in);
        n_chosen = choice.kept.size();
        return choice;
    };
    blind.policy.needs = ScoreKind::none;
    KeepList kept = decide_cut(blind, seq, walk.live(), {}, walk.progress()).choice.kept;
    const bool added_last = kept.size() != n_chosen;
    return {std::move(kept), added_last};
}

}  // namespace

ExpectedRows expected_rows(const Plan & plan, const Sequence & seq, int32_t n_layer) {
    ExpectedRows out;
    const bool ends_with_image = !seq.rows.empty() && seq.rows.back().kind == RowKind::image;
    int32_t n_more = 0;  // 1 if the last row may be kept in addition to the policy's choice
    for (CutWalk walk(plan, seq, n_layer); !walk.is_over(); walk.pass()) {
        const Cut * cut = walk.due();
        if (cut && cut->policy.stand_in) {
            const BlindChoice blind = choose_blind(walk, seq);
            if (ends_with_image && cut->policy.needs != ScoreKind::none) {
                n_more = blind.added_last ? 0 : 1;  // the stand-in chose the last row, the real policy may not
                out.exact = false;
            }
            std::vector<float> no_hidden;
            walk.keep(blind.kept, 0, no_hidden);
        } else if (cut) {
            out.exact = out.exact && walk.n_image_tokens() == 0;
            walk.keep_all();
        }
        out.n_live.push_back(static_cast<int32_t>(walk.live().size()) + n_more);
    }
    return out;
}

}  // namespace atp
