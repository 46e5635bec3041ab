// Scores -> keep list. Pure functions over plain arrays: no ggml, no llama, no state.
//
// Laws: original positions are never touched here; every image keeps at least one token; several images get a quota
// each; `keep` is a fraction of the image's ORIGINAL token count, so that cuts compose (50 % then 25 % leaves 25 %).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "prompt/sequence.h"
#include "prune/atp_head.h"
#include "prune/score_kind.h"

namespace atp {

// the input of a policy at one cut; arrays run over the live image tokens, in order
struct PolicyInput {
    std::vector<int32_t> index;  // image-token index
    std::vector<int32_t> image;  // image it belongs to
    std::vector<int32_t> y, x;   // cell on that image's patch grid
    std::vector<ImageSpan> images;
    double keep = 1.0;  // fraction of each image's original tokens
    uint64_t seed = 0;

    std::vector<float> score;  // ScoreKind::last_row: attention from the prompt's last row, mean over heads

    // ScoreKind::atp, mean over heads: attention from all live image rows, summed; from the question's rows, their
    // mean; and how many live image rows see the token, itself included
    std::vector<double> self_sum, cross;
    std::vector<int32_t> n_visible;

    int32_t after = 0;    // layers run so far
    int32_t n_layer = 0;  // layers of the model
    double spent = 0.0;   // image tokens computed so far, summed over those layers
};

// a keep list: image-token indices, ascending
using KeepList = std::vector<int32_t>;

// the choice of a policy; most policies set only the keep list
struct Choice {
    KeepList kept;
    std::optional<AtpThresholds> thresholds;  // of the policy atp only
    KeepList spatial;                         // the tokens in `kept` that only the spatial rule kept

    Choice() = default;
    Choice(KeepList list) : kept(std::move(list)) {}  // NOLINT: a keep list is a choice
};

using PolicyFn = std::function<Choice(const PolicyInput &)>;

struct Policy {
    std::string name;
    ScoreKind needs = ScoreKind::none;
    PolicyFn fn;
    // keeps the same number of tokens, but maybe other tokens, and needs no scores: it forecasts the cost of a caption.
    // Empty where the number cannot be known before
    PolicyFn stand_in = {};
};

// the policies by name; throws PlanError for an unknown name, and lists the known names
const Policy & find_policy(const std::string & name);
std::vector<std::string> policy_names();

// how many tokens an image of n_tokens keeps: max(1, round(keep * n_tokens)), half away from zero
int32_t quota(double keep, int32_t n_tokens);

// `none`: all live tokens
KeepList keep_all(const PolicyInput & in);

// `random`: the quota of tokens with the smallest splitmix64(seed, index), the same tokens for any order of arrival
KeepList keep_random(const PolicyInput & in);

// `grid`: the quota of cells that come first in Bayer order, i.e. uniform 2-D sampling at every fraction: 1/4 is
// every second row and column, 1/2 the checkerboard. Repairs the position bias of attention scores (Feather,
// arXiv 2412.13180, names a uniform stride; the Bayer order is our reading, it nests)
KeepList keep_grid(const PolicyInput & in);

// `fastv`: the quota of tokens with the highest score, ties to the lower index. The score is the head-mean attention
// row of the last prompt token (FastV, arXiv 2403.06764, section 4)
KeepList keep_fastv(const PolicyInput & in);

// rank of cell (y, x) in Bayer order, 16 bits a coordinate
uint32_t bayer_rank(uint32_t y, uint32_t x);

// checks that a keep list from outside is a legal choice among the live tokens; throws PlanError
void check_keep_list(const PolicyInput & in, const KeepList & kept, const std::string & policy_name);

}  // namespace atp
