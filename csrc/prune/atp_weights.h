// The trained ATP modules of one model as plain numbers: what a sidecar file holds (docs/design/sidecar.md).
//
// Knows no ggml, no file and no model. load_sidecar (sidecar.h) fills it and vouches for every range written here;
// atp_head computes with it. Matrices are [n_out][n_in], the input running fastest.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace atp {

// the module of one cut
struct AtpModule {
    int32_t after = 0;             // layers done before the cut; it scores with layer after - 1
    std::vector<float> proj_w;     // [n_hidden][2 * n_bins]; columns: n_bins of self, then n_bins of cross
    std::vector<float> proj_b;     // [n_hidden]
    std::vector<float> theta_r_w;  // [n_hidden]
    std::vector<float> theta_s_w;  // [n_hidden]
    float theta_r_b = 0;
    float theta_s_b = 0;
};

struct AtpWeights {
    enum class ScoreNorm : uint8_t { none, relative, minmax };
    enum class Divisor : uint8_t { rows_visible, rows_all };
    enum class Score : uint8_t { avg, self, cross };
    enum class Rule : uint8_t { union_, redundant, spatial };
    enum class Activation : uint8_t { identity, relu, silu };

    std::string path;
    std::string name;         // general.name
    std::string arch;         // of the base model
    std::string base_name;    // of the base model
    std::string fingerprint;  // of the base model's norms: 64 hex digits
    int32_t n_layer = 0;      // layers of the base model; n_embd and n_head are of the base model too
    int32_t n_embd = 0;
    int32_t n_head = 0;

    ScoreNorm score_norm = ScoreNorm::relative;
    Divisor divisor = Divisor::rows_visible;
    Score score = Score::avg;
    Rule rule = Rule::union_;
    Activation activation = Activation::silu;
    std::vector<int32_t> strides;  // of the spatial grids: 1 to 64 of them, ascending, each 1 to 4096
    double lambda_sample = 3;      // > 0
    int32_t n_bins = 64;           // 2 to 4096
    int32_t n_hidden = 64;         // 1 to 4096

    std::vector<AtpModule> modules;  // 1 to 64 of them, `after` ascending, each in 1 .. n_layer - 1

    double budget = 1;         // trained for this layer-mean fraction of the image tokens, in (0, 1]
    std::vector<double> kept;  // [modules] mean share of the image tokens alive after each cut; in (0, 1], never rising
    std::string mode;          // thresholds, full or lora: what was trained with the modules
    std::string data;          // the training data, in words
    int32_t grid_rows = 0;     // patch grid in training; any other grid works too
    int32_t grid_cols = 0;
};

}  // namespace atp
