// What one caption cost, as one plain struct shown everywhere (Python, JSON rows, tables).
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "prompt/sequence.h"
#include "prune/decide_cut.h"
#include "prune/plan.h"

namespace atp {

struct Report {
    int32_t n_image_tokens = 0;  // before any cut, all images together
    int32_t n_prompt = 0;        // rows of the sequence: text and image
    int32_t n_decoded = 0;       // tokens generated

    std::vector<int32_t> n_kept;             // image tokens alive after each cut
    std::vector<std::vector<int32_t>> kept;  // per cut: the keep list as image-token indices, ascending

    // policy atp, per cut: theta_r, theta_s and the offset that a budget shifts both by; and the image tokens that only
    // the spatial rule kept. Empty for other policies
    std::vector<std::tuple<double, double, double>> thresholds;
    std::vector<std::vector<int32_t>> kept_spatial;

    // rows and columns of each patch grid, in the order of their image tokens, and the image of the prompt that the
    // grid belongs to. An image has one grid, or several grids where it is cut into tiles
    std::vector<std::pair<int32_t, int32_t>> grids;
    std::vector<int32_t> grid_images;

    double tokens_mean = 0.0;  // image tokens averaged over all decoder layers (Table 1 of the ATP paper)

    double t_encode = 0.0;   // ms, vision encoder and projector
    double t_prefill = 0.0;  // ms, all stages, scoring and compaction included
    double t_decode = 0.0;   // ms, all generated tokens

    size_t kv_bytes = 0;  // real buffers of all stage caches
};

// the part of the report that is known after the prefill of a prompt
Report make_report(const Sequence & seq, const Plan & plan, const std::vector<CutRecord> & cuts, int32_t n_layer);

}  // namespace atp
