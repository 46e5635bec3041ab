#include "prune/plan.h"

#include <algorithm>

#include "base/errors.h"

namespace atp {

namespace {

std::string list_of(const std::vector<int32_t> & values) {
    std::string out;
    for (const int32_t v : values) {
        out += out.empty() ? std::to_string(v) : ", " + std::to_string(v);
    }
    return out;
}

}  // namespace

void check_plan(const Plan & plan, int32_t n_layer, const Borders & borders) {
    int32_t previous = -1;
    for (const Cut & cut : plan) {
        const std::string where = "cut after " + std::to_string(cut.after) + " layers (policy " + cut.policy.name + ")";
        if (cut.after < 0 || cut.after >= n_layer) {
            throw PlanError(where + ": this model has " + std::to_string(n_layer) + " layers; choose 0 to " +
                            std::to_string(n_layer - 1));
        }
        if (cut.after <= previous) {
            throw PlanError(where + ": cuts must come in ascending order, each at its own place");
        }
        previous = cut.after;
        if (!(cut.keep > 0.0 && cut.keep <= 1.0)) {
            throw PlanError(where + ": keep must be above 0 and at most 1, got " + std::to_string(cut.keep));
        }
        if (cut.after == 0) {
            if (cut.policy.needs != ScoreKind::none) {
                throw PlanError(where +
                                ": this policy needs attention scores, and none exist before the first layer; " +
                                "cut after at least 1 layer");
            }
            continue;
        }
        const std::vector<int32_t> & legal = borders.legal;
        if (std::find(legal.begin(), legal.end(), cut.after) == legal.end()) {
            const auto reason = borders.why_not.find(cut.after);
            throw PlanError(where + ": this architecture cannot be cut there" +
                            (reason == borders.why_not.end() ? "" : " (" + reason->second + ")") + "; legal are " +
                            (legal.empty() ? "none" : list_of(legal)));
        }
    }
}

std::vector<StageRange> stage_ranges(const Plan & plan, int32_t n_layer) {
    std::vector<StageRange> out;
    int32_t first = 0;
    for (const Cut & cut : plan) {
        if (cut.after > 0) {
            out.push_back({first, cut.after});
            first = cut.after;
        }
    }
    out.push_back({first, n_layer});
    return out;
}

double layer_mean(const Plan & plan, const std::vector<int32_t> & n_kept, int32_t n_image_tokens, int32_t n_layer) {
    double sum = 0.0;
    int32_t first = 0;
    int32_t live = n_image_tokens;
    for (size_t k = 0; k < plan.size(); ++k) {
        sum += static_cast<double>(plan[k].after - first) * live;
        first = plan[k].after;
        live = n_kept[k];
    }
    sum += static_cast<double>(n_layer - first) * live;
    return n_layer > 0 ? sum / n_layer : 0.0;
}

}  // namespace atp
