#include "prune/atp_policy.h"

#include <algorithm>
#include <cstdio>

#include "base/errors.h"

namespace atp {

namespace {

std::string number(double x) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.4g", x);
    return text;
}

std::string budget_text(const AtpBudget & budget, int32_t n_tokens) {
    if (!budget.is_share) {
        return "a budget of " + number(budget.value) + " image tokens";
    }
    return "a budget of " + number(budget.value) + " (" + number(budget.value * n_tokens) + " of " +
           std::to_string(n_tokens) + " image tokens)";
}

// live tokens wanted after module k
int32_t wanted(const AtpWeights & weights, size_t k, const AtpBudget & budget, const PolicyInput & in) {
    int32_t n_tokens = 0;
    for (const ImageSpan & span : in.images) {
        n_tokens += span.n_tokens;
    }
    const auto n_images = static_cast<int32_t>(in.images.size());
    AtpBudgetLeft left;
    for (size_t q = k; q < weights.modules.size(); ++q) {
        const int32_t end = q + 1 < weights.modules.size() ? weights.modules[q + 1].after : in.n_layer;
        left.spans.push_back(end - weights.modules[q].after);
        left.shares.push_back(weights.kept[q]);
    }
    left.token_layers = (budget.is_share ? budget.value * n_tokens : budget.value) * in.n_layer - in.spent;
    const double least = static_cast<double>(n_images) * left.n_layers();
    if (left.token_layers < least - 1e-9) {
        const double mean = (in.spent + least) / in.n_layer;
        throw PlanError(budget_text(budget, n_tokens) + " cannot be met: all " + std::to_string(n_tokens) +
                        " live up to the cut after " + std::to_string(in.after) + " of " + std::to_string(in.n_layer) +
                        " layers, and each image keeps one; the least possible is a mean of " + number(mean) + " (" +
                        number(mean / n_tokens) + " of them)");
    }
    return tokens_for(left, n_images, static_cast<int32_t>(in.index.size()));
}

// keeps as many tokens as the budget allows module k: one token of each image, then the first tokens
KeepList keep_wanted(const AtpWeights & weights, size_t k, const AtpBudget & budget, const PolicyInput & in) {
    std::vector<char> seen(in.images.size(), 0);
    int32_t n_more = wanted(weights, k, budget, in) - static_cast<int32_t>(in.images.size());
    KeepList kept;
    for (size_t i = 0; i < in.index.size(); ++i) {
        const bool first = !seen[in.image[i]];
        if (first || n_more > 0) {
            seen[in.image[i]] = 1;
            n_more -= first ? 0 : 1;
            kept.push_back(in.index[i]);
        }
    }
    return kept;
}

void check_budget(const AtpWeights & weights, const AtpBudget & budget, int32_t n_layer) {
    if (budget.is_share ? !(budget.value > 0.0 && budget.value <= 1.0) : !(budget.value >= 1.0)) {
        throw PlanError("a budget is a fraction above 0 and at most 1, or a count of at least 1 image token, got " +
                        number(budget.value));
    }
    const double least = static_cast<double>(weights.modules.front().after) / n_layer;
    if (budget.is_share && budget.value <= least) {
        throw PlanError("a budget of " + number(budget.value) + " cannot be met: " + weights.path +
                        " cuts first after " + std::to_string(weights.modules.front().after) + " of " +
                        std::to_string(n_layer) + " layers, which alone cost " + number(least) +
                        " of the image tokens in the mean; ask for more");
    }
}

}  // namespace

Plan atp_plan(const std::shared_ptr<const AtpWeights> & weights, const std::optional<AtpBudget> & budget,
              int32_t n_layer, const std::vector<int32_t> & legal_cuts) {
    if (budget) {
        check_budget(*weights, *budget, n_layer);
    }
    Plan plan;
    for (size_t k = 0; k < weights->modules.size(); ++k) {
        const int32_t after = weights->modules[k].after;
        if (std::find(legal_cuts.begin(), legal_cuts.end(), after) == legal_cuts.end()) {
            throw PlanError(weights->path + ": trained to cut after " + std::to_string(after) + " of " +
                            std::to_string(weights->n_layer) +
                            " layers, where this model cannot be cut; train one for other cuts (atp-cpp inspect lists "
                            "the legal ones), or leave policy atp out");
        }
        Policy policy;
        policy.name = "atp";
        policy.needs = ScoreKind::atp;
        policy.fn = [weights, k, budget](const PolicyInput & in) { return choose_atp(*weights, k, budget, in); };
        if (budget) {
            policy.stand_in = [weights, k, budget](const PolicyInput & in) {
                return Choice(keep_wanted(*weights, k, *budget, in));
            };
        }
        plan.push_back({after, std::move(policy), 1.0, 0});
    }
    return plan;
}

Choice choose_atp(const AtpWeights & weights, size_t k, const std::optional<AtpBudget> & budget,
                  const PolicyInput & in) {
    const std::vector<double> self =
        normalise(mean_self(in.self_sum, in.n_visible, weights.divisor), weights.score_norm);
    const std::vector<double> cross = normalise(in.cross, weights.score_norm);
    AtpThresholds at = thresholds(weights, weights.modules[k], self, cross);
    std::vector<double> spatial;
    for (size_t i = 0; i < in.index.size(); ++i) {
        spatial.push_back(
            spatial_score(in.y[i], in.x[i], in.images[in.image[i]], weights.strides, weights.lambda_sample));
    }
    const AtpMargins above = margins(weights.rule, at, redundancy_score(weights.score, self, cross), spatial);
    const std::vector<int32_t> rows =
        budget ? keep_best(above, in.image, wanted(weights, k, *budget, in), at.offset) : keep_above(above, in.image);
    // whether one score keeps the token: above its threshold, or, with a budget, at or above the shifted threshold
    const auto passes = [&](double margin) { return budget ? margin >= -at.offset : margin > 0.0; };
    Choice choice;
    for (const int32_t i : rows) {
        choice.kept.push_back(in.index[i]);
        if (passes(above.spatial[i]) && !passes(above.red[i])) {
            choice.spatial.push_back(in.index[i]);
        }
    }
    choice.thresholds = at;
    return choice;
}

}  // namespace atp
