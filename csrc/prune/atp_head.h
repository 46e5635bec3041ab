// The mathematics of one ATP module: attention sums -> learned thresholds -> which image tokens live on.
//
// Pure functions over plain arrays, in float64; no ggml, no model, no state. Arrays run over the L live image tokens
// of all images of the prompt, in order. From ATP-LLaVA (arXiv 2412.00447, module figure): the two scores and their
// average, one linear layer with two sigmoid heads, the union of the two rules, the sparser grids of the spatial score.
// Our own decisions: normalised scores, features free of L, centred grids, the guard, the budget. Each says so below.
#pragma once

#include <cstdint>
#include <vector>

#include "prompt/sequence.h"
#include "prune/atp_weights.h"

namespace atp {

// A token is kept if one of its scores is above the theta of this score. A budget shifts both thetas by one offset:
// then a token is kept if a score is at or above theta - offset. The offset is infinite if the budget takes tokens that
// no offset lets through, and 0 without a budget
struct AtpThresholds {
    double theta_r = 0.0;  // of the redundancy (attention) score, in (0, 1)
    double theta_s = 0.0;  // of the spatial score, in (0, 1)
    double offset = 0.0;
};

// how many live image rows see each token, the token's own row included: all rows at or after the token; also all rows
// of the token's image if this image is not causal. image: [L], ascending
std::vector<int32_t> rows_that_see(const std::vector<int32_t> & image, const std::vector<ImageSpan> & images);

// S_self from raw sums (the paper: mean over the image tokens; which image tokens count is our reading): sum / number
// of rows that see the token, or sum / L
std::vector<double> mean_self(const std::vector<double> & self_sum, const std::vector<int32_t> & n_visible,
                              AtpWeights::Divisor divisor);

// scores to the scale of the thresholds (ours: raw scores are about 1/L, thresholds lie in (0, 1)). relative:
// s / (s + mean), minmax: (s - min) / (max - min), both 0.5 where that is 0 / 0
std::vector<double> normalise(const std::vector<double> & score, AtpWeights::ScoreNorm norm);

// n_bins points of the scores in descending order, linearly interpolated (ours: the same width for any L)
std::vector<double> features(std::vector<double> score, int32_t n_bins);

// both thresholds of a module, offset 0; self and cross are normalised (the paper: one linear layer, two heads)
AtpThresholds thresholds(const AtpWeights & weights, const AtpModule & module, const std::vector<double> & self,
                         const std::vector<double> & cross);

// the attention score that is compared with theta_r: the mean of both scores (the paper), or one score alone (the
// paper's ablations)
std::vector<double> redundancy_score(AtpWeights::Score kind, const std::vector<double> & self,
                                     const std::vector<double> & cross);

// spatial score of cell (y, x): the highest 1 - lambda_sample / stride^2 among the strides whose uniform grid contains
// the cell; -infinity if no grid contains it (the formula is second hand; centring the grids is our decision)
double spatial_score(int32_t y, int32_t x, const ImageSpan & image, const std::vector<int32_t> & strides,
                     double lambda_sample);

// how far each token is above the two thresholds, [L]; -infinity for a score that the rule does not use
struct AtpMargins {
    std::vector<double> red;      // redundancy score - theta_r
    std::vector<double> spatial;  // spatial score - theta_s
    std::vector<double> score;    // the redundancy score, which orders equal margins

    double best(size_t i) const { return red[i] > spatial[i] ? red[i] : spatial[i]; }
};

AtpMargins margins(AtpWeights::Rule rule, const AtpThresholds & at, std::vector<double> redundancy,
                   const std::vector<double> & spatial);

// positions (in the arrays, ascending) of the tokens above one of the thresholds. An image that would lose all its
// tokens keeps the token with the best margin; ties go to the lower position (this guard is our decision)
std::vector<int32_t> keep_above(const AtpMargins & margins, const std::vector<int32_t> & image);

// n tokens: first the best token of each image, then the tokens with the best margins; ties by score, then by position
// (our decision). offset: the offset that keeps the last of them. Expects number of images <= n <= L
std::vector<int32_t> keep_best(const AtpMargins & margins, const std::vector<int32_t> & image, int32_t n,
                               double & offset);

// what is left of a budget for the layers from one module on
struct AtpBudgetLeft {
    double token_layers = 0.0;   // sum over those layers of live tokens that the budget still allows
    std::vector<int32_t> spans;  // layers from each module to the next, or to the end
    std::vector<double> shares;  // mean share of the image tokens alive there in training

    int32_t n_layers() const;
};

// live tokens wanted in the first of these spans, so that all spans, with the shares of training, use up what is left
// of the budget (our decision). Never so many that a later span could not keep one token of each image. 1 .. n_live
int32_t tokens_for(const AtpBudgetLeft & left, int32_t n_images, int32_t n_live);

}  // namespace atp
