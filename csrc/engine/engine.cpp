#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "base/errors.h"
#include "base/stopwatch.h"
#include "llama.h"
#include "llama/memory_room.h"
#include "sidecar/sidecar.h"

namespace atp {

namespace {

// staged and plain logits are equal on a CPU and differ by rounding on other devices; a wrong cut gives about 1
constexpr double self_test_nmse = 1e-3;

std::string token_text(const Model & model, int32_t token) {
    const char * text = token < 0 ? nullptr : llama_vocab_get_text(model.vocab(), token);
    return text ? text : "";
}

// "" for a byte-level BPE whose file names no such token: llama.cpp would return the id of GPT-2's token
std::string end_token(const Model & model, const std::string & which, int32_t token) {
    const bool named = !model.meta("tokenizer.ggml." + which + "_token_id").empty();
    return named || llama_vocab_type(model.vocab()) != LLAMA_VOCAB_TYPE_BPE ? token_text(model, token) : "";
}

// frees the cells of a caption when it ends, also by an exception
class Removed {
  public:
    Removed(Decoder & decoder, int32_t seq_id) : decoder_(decoder), seq_id_(seq_id) {}
    ~Removed() { decoder_.remove(seq_id_); }
    Removed(const Removed &) = delete;
    Removed & operator=(const Removed &) = delete;

  private:
    Decoder & decoder_;
    int32_t seq_id_;
};

bool has_accelerator() {
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU) != nullptr ||
           ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_IGPU) != nullptr;
}

// throws ModelError where model and projector together plainly do not fit into memory
const ModelParams & that_fit(const ModelParams & params, const VisionParams & vision) {
    LoadNeeds needs;
    needs.model = params.path;
    needs.projector = vision.path;
    needs.n_threads = params.n_threads > 0 ? params.n_threads : default_threads();
    needs.on_cpu = params.n_gpu_layers == 0 || !has_accelerator();
    check_fits(needs);
    return params;
}

std::vector<std::string> lines(const std::string & text) {
    std::vector<std::string> result;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) {
        result.push_back(line);
    }
    return result;
}

}  // namespace

Engine::Engine(const ModelParams & params, const VisionParams & vision, const std::string & atp_path, bool self_test)
    : atp_(atp_path.empty() ? nullptr : std::make_shared<const AtpWeights>(load_sidecar(atp_path))),
      model_(that_fit(params, vision)), vision_(vision.path.empty() ? nullptr : new Vision(model_, vision)),
      decoder_(model_), batch_(model_, decoder_), self_tests_(self_test) {
    if (atp_) {
        check_pair(*atp_, model_);
    }
    fill_info();
}

Plan Engine::atp_plan(const std::optional<AtpBudget> & budget) const {
    if (!atp_) {
        throw PlanError("policy atp needs the thresholds trained for this model; load its sidecar (--atp FILE)");
    }
    check_can_prune();
    return atp::atp_plan(atp_, budget, model_.n_layer(), info_.legal_cuts);
}

void Engine::check_can_prune() const {
    if (!info_.can_prune) {
        throw PlanError("this model runs unstaged only: " + info_.why_not + "; drop the policy");
    }
}

void Engine::fill_info() {
    info_.arch = model_.arch();
    info_.name = model_.meta("general.name");
    info_.chat_template = model_.chat_template();
    info_.bos = end_token(model_, "bos", llama_vocab_bos(model_.vocab()));
    info_.eos = end_token(model_, "eos", llama_vocab_eos(model_.vocab()));
    info_.add_bos = llama_vocab_get_add_bos(model_.vocab());
    info_.nfc = model_.meta("atp.tokenizer.nfc") == "true";
    info_.lstrip = lines(model_.meta("atp.tokenizer.lstrip"));
    info_.rstrip = lines(model_.meta("atp.tokenizer.rstrip"));
    info_.media_marker = Vision::media_marker();
    info_.n_layer = model_.n_layer();
    info_.n_embd = model_.n_embd();
    info_.n_vocab = model_.n_vocab();
    info_.n_ctx_train = model_.n_ctx_train();
    info_.n_params = model_.n_params();
    info_.size_bytes = model_.size_bytes();
    info_.has_vision = vision_ != nullptr;
    info_.mrope = model_.n_pos_per_embd() > 1;
    info_.devices = model_.devices();
    info_.legal_cuts = decoder_.legal_cuts();
    for (const AtpModule & module : atp_ ? atp_->modules : std::vector<AtpModule>()) {
        info_.atp_cuts.push_back(module.after);
    }
    info_.can_batch = decoder_.can_batch();
    info_.can_prune = !info_.legal_cuts.empty();
    if (!info_.can_prune) {
        info_.why_not = "no border between two layers of architecture '" + info_.arch + "' can be cut";
    } else if (self_tests_) {
        info_.why_not = self_test();
    }
    if (!info_.why_not.empty()) {
        info_.can_prune = false;
        info_.legal_cuts.clear();
    }
}

// "" when a stage border in the middle of the model changes nothing, else why this model must run without stages. If
// the middle fails, other borders may still work: a cut that fails is no longer legal
std::string Engine::self_test() {
    const std::vector<int32_t> legal = info_.legal_cuts;
    const size_t n = legal.size();
    std::string first_reason;
    for (const size_t i : {n / 2, n > 1 ? n / 2 - 1 : 0, n / 4, n * 3 / 4}) {
        const std::string & reason = test({legal[i]});
        if (reason.empty()) {
            return "";
        }
        first_reason = first_reason.empty() ? reason : first_reason;
        auto & left = info_.legal_cuts;
        left.erase(std::remove(left.begin(), left.end(), legal[i]), left.end());
    }
    return first_reason;
}

// "" when stage borders at these cuts change nothing, else what is wrong; computed once
const std::string & Engine::test(const std::vector<int32_t> & cuts) {
    const auto known = tested_.find(cuts);
    if (known != tested_.end()) {
        return known->second;
    }
    std::string where = cuts.size() == 1 ? "cut after " : "cuts after ";
    for (size_t i = 0; i < cuts.size(); ++i) {
        where += (i == 0 ? "" : ", ") + std::to_string(cuts[i]);
    }
    where += " layers, architecture '" + info_.arch + "': ";
    std::string reason;
    try {
        const double error = decoder_.self_test(cuts);
        if (!(error < self_test_nmse)) {
            reason = where + "other logits than llama.cpp's (NMSE " + std::to_string(error) + ")";
        }
    } catch (const NoMemory &) {
        throw;
    } catch (const AtpError & e) {
        reason = where + e.what();
    }
    return tested_.emplace(cuts, std::move(reason)).first->second;
}

// throws PlanError unless the plan's cuts change nothing by themselves. Only while no sequence is alive
void Engine::check_runs(const Plan & plan) {
    if (plan.empty()) {
        return;
    }
    check_can_prune();
    decoder_.set_plan(plan);
    std::vector<int32_t> cuts;
    for (const Cut & cut : plan) {
        if (cut.after > 0) {
            cuts.push_back(cut.after);
        }
    }
    if (!self_tests_ || cuts.empty()) {
        return;
    }
    const std::string & reason = test(cuts);
    if (!reason.empty()) {
        throw PlanError("the self-test refuses this plan, " + reason + "; move the cuts, or drop the policy");
    }
}

PreparedPrompt Engine::prepare(const std::string & prompt, const std::vector<RgbImage> & images) const {
    if (!vision_) {
        throw ModelError("this model has no vision projector loaded; pass its mmproj file (--mmproj)");
    }
    return vision_->prepare(prompt, images);
}

Sequence Engine::encode(const PreparedPrompt & prompt, const std::optional<KnownRows> & known, Interrupt & interrupt) {
    if (!vision_) {
        throw ImageError("this prompt was prepared by another engine; this one has no vision projector");
    }
    const std::lock_guard<std::mutex> lock(vision_mutex_);
    return vision_->encode(prompt, known, interrupt);
}

Sequence Engine::encode(const std::string & prompt, const std::vector<RgbImage> & images,
                        const std::optional<KnownRows> & known, Interrupt & interrupt) {
    if (images.empty() && !vision_) {
        return tokenize_text(model_, prompt);
    }
    return encode(prepare(prompt, images), known, interrupt);
}

void Engine::set_plan(const Plan & plan) {
    batch_.check_idle("the plan cannot change");
    check_runs(plan);
    batch_.set_plan(plan);
}

Result Engine::generate(const Request & request, Interrupt & interrupt) {
    batch_.check_idle("a caption alone cannot be made");
    if (request.generation.n_predict < 0) {
        throw StageError("n_predict must be at least 0, got " + std::to_string(request.generation.n_predict));
    }
    decoder_.close_room();
    decoder_.remove(0);
    check_runs(request.plan);
    decoder_.set_plan(request.plan);
    Generation generation(model_, request.generation);
    const Sequence seq = encode(request.prompt, request.images, {}, interrupt);
    interrupt.check();
    const int32_t n_predict = decoder_.within_context(seq, request.generation.n_predict);
    generation.limit(n_predict);

    const Removed at_the_end(decoder_, 0);
    const Stopwatch prefill_time;
    PrefillResult prefill = decoder_.prefill(seq, {0, n_predict, false}, interrupt);
    Report report = make_report(seq, request.plan, prefill.cuts, model_.n_layer());
    report.t_prefill = prefill_time.ms();
    report.kv_bytes = decoder_.kv_bytes();

    const Stopwatch decode_time;
    std::vector<float> logits = std::move(prefill.logits);
    for (int32_t pos = seq.n_pos; generation.advance(logits.data()); ++pos) {
        logits = decoder_.decode({{0, generation.token(), pos}}, interrupt);
    }
    report.t_decode = decode_time.ms();
    return make_result(generation, std::move(report));
}

}  // namespace atp
