// Image to caption, the whole way: encode, prefill through the stages with cuts between them, decode.
//
// Owns model, projector and decoder. One caption alone, or several together (batch.h); nothing of one is seen by
// another. Throws ModelError, ImageError, PlanError, StageError, Cancelled; after a throw the engine can be used again.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/interrupt.h"
#include "decoder/decoder.h"
#include "engine/batch.h"
#include "llama/model.h"
#include "prune/atp_policy.h"
#include "prune/plan.h"
#include "text/generation.h"
#include "vision/vision.h"

namespace atp {

struct ModelInfo {
    std::string arch, name, chat_template, bos, eos, media_marker, why_not;
    int32_t n_layer = 0, n_embd = 0, n_vocab = 0, n_ctx_train = 0;
    uint64_t n_params = 0, size_bytes = 0;
    bool has_vision = false, mrope = false, can_prune = false;
    bool can_batch = false;  // several sequences can be alive at once
    bool add_bos = false;    // the tokeniser itself puts bos in front
    // what is to be done to a prompt, because the tokeniser does not
    bool nfc = false;                         // compose characters (Unicode NFC)
    std::vector<std::string> lstrip, rstrip;  // drop white space on the left, right of these tokens
    std::vector<int32_t> legal_cuts;
    std::vector<int32_t> atp_cuts;  // where the sidecar's modules sit; empty without a sidecar
    std::vector<std::string> devices;
};

struct Request {
    std::string prompt;  // one media marker per image
    std::vector<RgbImage> images;
    Plan plan;
    GenerationParams generation;
};

class Engine {
  public:
    // vision.path may be empty: text only. atp_path, the model's ATP sidecar, too. self_test: staged against
    // llama_decode, at load and before a plan with other cuts runs for the first time
    Engine(const ModelParams & params, const VisionParams & vision, const std::string & atp_path, bool self_test);

    // the cuts of the sidecar; PlanError without one, or for a budget that no prompt could meet
    Plan atp_plan(const std::optional<AtpBudget> & budget) const;

    // the prompt's parts, its images resized: the first half of encode. From any thread; ModelError without a projector
    PreparedPrompt prepare(const std::string & prompt, const std::vector<RgbImage> & images) const;

    // the prompt as rows, its images encoded and projected, or `known` taken for their rows. May be called from another
    // thread while a caption or a step is computed
    Sequence encode(const PreparedPrompt & prompt, const std::optional<KnownRows> & known, Interrupt & interrupt);
    Sequence encode(const std::string & prompt, const std::vector<RgbImage> & images,
                    const std::optional<KnownRows> & known, Interrupt & interrupt);

    // one caption alone; StageError while others are under way
    Result generate(const Request & request, Interrupt & interrupt);

    // captions together, with cuts of their own
    void set_plan(const Plan & plan);
    Batch & batch() { return batch_; }
    int32_t cell_step() const { return StageCache::cell_step(model_); }

    const ModelInfo & info() const { return info_; }

    // the sets of cuts compared with llama_decode so far, and why each must not be used ("": it may)
    const std::map<std::vector<int32_t>, std::string> & tested() const { return tested_; }

  private:
    void fill_info();
    void check_can_prune() const;
    void check_runs(const Plan & plan);
    std::string self_test();
    const std::string & test(const std::vector<int32_t> & cuts);

    std::shared_ptr<const AtpWeights> atp_;  // read before the model: a wrong path costs no loading
    Model model_;
    std::unique_ptr<Vision> vision_;
    std::mutex vision_mutex_;
    Decoder decoder_;
    Batch batch_;
    ModelInfo info_;
    bool self_tests_ = true;
    std::map<std::vector<int32_t>, std::string> tested_;
};

}  // namespace atp
