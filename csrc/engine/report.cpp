#include "engine/report.h"

namespace atp {

Report make_report(const Sequence & seq, const Plan & plan, const std::vector<CutRecord> & cuts, int32_t n_layer) {
    Report report;
    report.n_image_tokens = seq.n_image_tokens();
    report.n_prompt = static_cast<int32_t>(seq.rows.size());
    report.t_encode = seq.t_encode;
    for (const CutRecord & cut : cuts) {
        report.kept.push_back(cut.choice.kept);
        report.n_kept.push_back(static_cast<int32_t>(cut.choice.kept.size()));
        if (const auto & at = cut.choice.thresholds) {
            report.thresholds.emplace_back(at->theta_r, at->theta_s, at->offset);
            report.kept_spatial.push_back(cut.choice.spatial);
        }
    }
    for (const ImageSpan & span : seq.images) {
        report.grids.emplace_back(span.grid_rows, span.grid_cols);
        report.grid_images.push_back(span.source);
    }
    report.tokens_mean = layer_mean(plan, report.n_kept, report.n_image_tokens, n_layer);
    return report;
}

}  // namespace atp
