// Image to caption, the whole way: encode, prefill through the stages with cuts between them, decode.
//
// Owns model, projector and decoder. Makes one caption alone, or several together (batch.h); no caption sees another.
// Throws ModelError, ImageError, PlanError, StageError, Cancelled; after a throw the engine can be used again.
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
    // changes that the caller must make to a prompt, because llama.cpp's tokeniser does not make them
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
    // vision.path may be empty: then the engine takes text only. atp_path, the path of the model's ATP sidecar, may be
    // empty too. self_test: compare the stages with llama_decode, at load and before a plan with new cuts runs
    Engine(const ModelParams & params, const VisionParams & vision, const std::string & atp_path, bool self_test);

    // the cuts of the sidecar; throws PlanError without a sidecar, or for a budget that no prompt could meet
    Plan atp_plan(const std::optional<AtpBudget> & budget) const;

    // splits the prompt into parts and resizes its images: the first half of encode. May be called from any thread;
    // throws ModelError without a projector
    PreparedPrompt prepare(const std::string & prompt, const std::vector<RgbImage> & images) const;

    // the prompt as rows; its images are encoded and projected, or `known` gives their rows. May be called from another
    // thread while a caption or a step is computed
    Sequence encode(const PreparedPrompt & prompt, const std::optional<KnownRows> & known, Interrupt & interrupt);
    Sequence encode(const std::string & prompt, const std::vector<RgbImage> & images,
                    const std::optional<KnownRows> & known, Interrupt & interrupt);

    // makes one caption alone; throws StageError while other captions are under way
    Result generate(const Request & request, Interrupt & interrupt);

    // captions that run together; they have their own plan
    void set_plan(const Plan & plan);
    Batch & batch() { return batch_; }
    int32_t cell_step() const { return StageCache::cell_step(model_); }

    const ModelInfo & info() const { return info_; }

    // the sets of cuts compared with llama_decode so far, and why each set must not be used ("": it may be used)
    const std::map<std::vector<int32_t>, std::string> & tested() const { return tested_; }

  private:
    void fill_info();
    void check_can_prune() const;
    void check_runs(const Plan & plan);
    std::string self_test();
    const std::string & test(const std::vector<int32_t> & cuts);

    std::shared_ptr<const AtpWeights> atp_;  // read before the model: a wrong path fails fast
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
