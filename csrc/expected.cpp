#include "expected.h"

#include <numeric>

#include "choose.h"

namespace atp {

ExpectedRows expected_rows(const Plan & plan, const Sequence & seq, int32_t n_layer) {
    ExpectedRows out;
    std::vector<int32_t> live(seq.rows.size());
    std::iota(live.begin(), live.end(), 0);
    Progress progress{n_layer, 0.0};
    const bool ends_with_image = !seq.rows.empty() && seq.rows.back().kind == RowKind::image;
    int32_t n_more = 0;  // the last row, where it may stay beside those a policy keeps
    auto cut = plan.begin();
    const auto make_cut = [&] {
        if (cut->policy.stand_in) {
            Cut blind = *cut;
            size_t n_chosen = 0;
            blind.policy.fn = [&](const PolicyInput & in) {
                Choice choice = cut->policy.stand_in(in);
                n_chosen = choice.kept.size();
                return choice;
            };
            blind.policy.needs = ScoreKind::none;
            std::vector<float> no_hidden;
            const KeepList kept = choose(blind, seq, live, {}, progress).choice.kept;
            compact(seq, kept, 0, live, no_hidden);
            if (ends_with_image && cut->policy.needs != ScoreKind::none) {
                n_more = kept.size() == n_chosen ? 1 : 0;  // here it was among them, and there it may come on top
                out.exact = false;
            }
        } else if (n_live_image_tokens(seq, live) > 0) {
            out.exact = false;
        }
        ++cut;
    };
    if (cut != plan.end() && cut->after == 0) {
        make_cut();
    }
    for (const StageRange & stage : stage_ranges(plan, n_layer)) {
        out.n_live.push_back(static_cast<int32_t>(live.size()) + n_more);
        progress.spent += static_cast<double>(n_live_image_tokens(seq, live)) * (stage.il_last - stage.il_first);
        if (cut != plan.end()) {
            make_cut();
        }
    }
    return out;
}

}  // namespace atp
