#include "prune/atp_head.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace atp {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

double sigmoid(double x) {
    return 1.0 / (1.0 + std::exp(-x));
}

double activate(AtpWeights::Activation activation, double x) {
    switch (activation) {
        case AtpWeights::Activation::identity:
            return x;
        case AtpWeights::Activation::relu:
            return std::max(x, 0.0);
        case AtpWeights::Activation::silu:
            return x * sigmoid(x);
    }
    return x;
}

// positions, the best margin first
std::vector<int32_t> by_margin(const AtpMargins & margins) {
    std::vector<int32_t> order(margins.score.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        if (margins.best(a) != margins.best(b)) {
            return margins.best(a) > margins.best(b);
        }
        if (margins.score[a] != margins.score[b]) {
            return margins.score[a] > margins.score[b];
        }
        return a < b;
    });
    return order;
}

}  // namespace

std::vector<int32_t> rows_that_see(const std::vector<int32_t> & image, const std::vector<ImageSpan> & images) {
    const size_t n = image.size();
    std::vector<int32_t> out(n);
    size_t first = 0;  // of the present image
    for (size_t i = 0; i < n; ++i) {
        if (i > 0 && image[i] != image[i - 1]) {
            first = i;
        }
        out[i] = static_cast<int32_t>(n - (images[image[i]].causal ? i : first));
    }
    return out;
}

std::vector<double> mean_self(const std::vector<double> & self_sum, const std::vector<int32_t> & n_visible,
                              AtpWeights::Divisor divisor) {
    std::vector<double> out(self_sum.size());
    for (size_t i = 0; i < out.size(); ++i) {
        const bool visible = divisor == AtpWeights::Divisor::rows_visible;
        out[i] = self_sum[i] / (visible ? static_cast<double>(n_visible[i]) : static_cast<double>(out.size()));
    }
    return out;
}

std::vector<double> normalise(const std::vector<double> & score, AtpWeights::ScoreNorm norm) {
    std::vector<double> out = score;
    if (norm == AtpWeights::ScoreNorm::none || out.empty()) {
        return out;
    }
    if (norm == AtpWeights::ScoreNorm::relative) {
        const double mean = std::accumulate(out.begin(), out.end(), 0.0) / static_cast<double>(out.size());
        for (double & s : out) {
            s = mean == 0.0 ? 0.5 : s / (s + mean);
        }
        return out;
    }
    const auto [low, high] = std::minmax_element(score.begin(), score.end());
    for (double & s : out) {
        s = *high == *low ? 0.5 : (s - *low) / (*high - *low);
    }
    return out;
}

std::vector<double> features(std::vector<double> score, int32_t n_bins) {
    std::sort(score.begin(), score.end(), std::greater<double>());
    std::vector<double> out(n_bins);
    for (int32_t b = 0; b < n_bins; ++b) {
        const double at =
            n_bins > 1 ? static_cast<double>(b) * static_cast<double>(score.size() - 1) / (n_bins - 1) : 0;
        const auto low = static_cast<size_t>(at);
        const size_t next = std::min(low + 1, score.size() - 1);
        const double part = at - static_cast<double>(low);
        out[b] = (1.0 - part) * score[low] + part * score[next];
    }
    return out;
}

AtpThresholds thresholds(const AtpWeights & weights, const AtpModule & module, const std::vector<double> & self,
                         const std::vector<double> & cross) {
    std::vector<double> x = features(self, weights.n_bins);
    const std::vector<double> of_cross = features(cross, weights.n_bins);
    x.insert(x.end(), of_cross.begin(), of_cross.end());
    double r = module.theta_r_b;
    double s = module.theta_s_b;
    for (int32_t h = 0; h < weights.n_hidden; ++h) {
        const float * w = &module.proj_w[h * x.size()];
        const double z =
            activate(weights.activation, std::inner_product(x.begin(), x.end(), w, double{module.proj_b[h]}));
        r += module.theta_r_w[h] * z;
        s += module.theta_s_w[h] * z;
    }
    return {sigmoid(r), sigmoid(s), 0.0};
}

std::vector<double> redundancy_score(AtpWeights::Score kind, const std::vector<double> & self,
                                     const std::vector<double> & cross) {
    if (kind != AtpWeights::Score::avg) {
        return kind == AtpWeights::Score::self ? self : cross;
    }
    std::vector<double> out(self.size());
    for (size_t i = 0; i < out.size(); ++i) {
        out[i] = (self[i] + cross[i]) / 2;
    }
    return out;
}

double spatial_score(int32_t y, int32_t x, const ImageSpan & image, const std::vector<int32_t> & strides,
                     double lambda_sample) {
    const auto on_grid = [](int32_t at, int32_t n, int32_t stride) {
        const int32_t offset = (n - 1) % stride / 2;
        return at >= offset && (at - offset) % stride == 0;
    };
    double best = -infinity;
    for (const int32_t stride : strides) {
        if (on_grid(y, image.grid_rows, stride) && on_grid(x, image.grid_cols, stride)) {
            best = std::max(best, 1.0 - lambda_sample / (static_cast<double>(stride) * stride));
        }
    }
    return best;
}

AtpMargins margins(AtpWeights::Rule rule, const AtpThresholds & at, std::vector<double> redundancy,
                   const std::vector<double> & spatial) {
    AtpMargins out;
    for (size_t i = 0; i < redundancy.size(); ++i) {
        out.red.push_back(rule == AtpWeights::Rule::spatial ? -infinity : redundancy[i] - at.theta_r);
        out.spatial.push_back(rule == AtpWeights::Rule::redundant ? -infinity : spatial[i] - at.theta_s);
    }
    out.score = std::move(redundancy);
    return out;
}

std::vector<int32_t> keep_above(const AtpMargins & margins, const std::vector<int32_t> & image) {
    std::vector<int32_t> kept;
    for (size_t first = 0, end = 0; first < image.size(); first = end) {
        size_t best = first;
        const size_t n_before = kept.size();
        for (end = first; end < image.size() && image[end] == image[first]; ++end) {
            if (margins.best(end) > 0.0) {
                kept.push_back(static_cast<int32_t>(end));
            }
            best = margins.best(end) > margins.best(best) ? end : best;
        }
        if (kept.size() == n_before) {
            kept.push_back(static_cast<int32_t>(best));
        }
    }
    return kept;
}

std::vector<int32_t> keep_best(const AtpMargins & margins, const std::vector<int32_t> & image, int32_t n,
                               double & offset) {
    const std::vector<int32_t> order = by_margin(margins);
    std::vector<char> reserved(image.size(), 0);
    std::vector<char> seen(image.empty() ? 0 : image.back() + 1, 0);
    int32_t n_waiting = 0;  // reserved tokens that the loop has not reached yet
    for (const int32_t i : order) {
        if (!seen[image[i]]) {
            seen[image[i]] = reserved[i] = 1;
            ++n_waiting;
        }
    }
    std::vector<int32_t> kept;
    bool in_order = true;  // no token was left out yet
    offset = 0.0;
    for (const int32_t i : order) {
        n_waiting -= reserved[i];
        if (!reserved[i] && static_cast<int32_t>(kept.size()) + n_waiting >= n) {
            in_order = false;
            continue;
        }
        kept.push_back(i);
        offset = in_order ? -margins.best(i) : offset;
    }
    std::sort(kept.begin(), kept.end());
    return kept;
}

int32_t AtpBudgetLeft::n_layers() const {
    return std::accumulate(spans.begin(), spans.end(), 0);
}

int32_t tokens_for(const AtpBudgetLeft & left, int32_t n_images, int32_t n_live) {
    constexpr double rounding = 1e-9;  // a count that is this close to a whole number counts as whole
    double layers = 0.0;               // layers of this span, and of later spans weighted by their share
    for (size_t q = 0; q < left.spans.size(); ++q) {
        layers += left.spans[q] * (left.shares[q] / left.shares[0]);
    }
    const double later = left.n_layers() - left.spans[0];
    const double most = (left.token_layers - n_images * later) / left.spans[0];
    const double wanted = std::floor(std::min(left.token_layers / layers, most) + rounding);
    return static_cast<int32_t>(std::clamp<double>(wanted, n_images, n_live));
}

}  // namespace atp
