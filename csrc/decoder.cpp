#include "decoder.h"

#include <algorithm>

#include "errors.h"
#include "llama_private.h"
#include "model.h"

namespace atp {

namespace {

// most stage sets differ in nothing: rebuilding them for every caption would cost a graph each
bool same_ranges(const std::vector<std::unique_ptr<Stage>> & stages, const std::vector<StageRange> & ranges) {
    return stages.size() == ranges.size() &&
           std::equal(ranges.begin(), ranges.end(), stages.begin(), [](StageRange r, const std::unique_ptr<Stage> & s) {
               return s->range().il_first == r.il_first && s->range().il_last == r.il_last;
           });
}

double nmse(const std::vector<float> & reference, const float * other) {
    double error = 0.0;
    double power = 0.0;
    for (size_t i = 0; i < reference.size(); ++i) {
        const double d = static_cast<double>(reference[i]) - other[i];
        error += d * d;
        power += static_cast<double>(reference[i]) * reference[i];
    }
    return power > 0.0 ? error / power : error;
}

std::vector<int32_t> test_tokens(int32_t n, int32_t n_vocab) {
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < n; ++i) {
        tokens.push_back(static_cast<int32_t>((1103515245ULL * (i + 1) + 12345ULL) % n_vocab));
    }
    return tokens;
}

void check_token(const Model & model, int32_t token) {
    if (token < 0 || token >= model.n_vocab()) {
        throw StageError("token " + std::to_string(token) + " is outside the vocabulary of " +
                         std::to_string(model.n_vocab()));
    }
}

}  // namespace

Decoder::Decoder(const Model & model) : model_(model) {
    set_plan({});
}

Decoder::~Decoder() = default;

const std::vector<int32_t> & Decoder::legal_cuts() {
    if (!legal_cuts_known_) {
        StageCache cache(model_, {0, model_.n_layer()});
        Batcher batcher(model_);
        constexpr int32_t n_probe = 2;
        cache.reserve(n_probe, n_probe);
        const llama_ubatch ubatch = batcher.dummy(n_probe, false);
        const auto memory = cache.memory()->init_full();
        GraphRequest request;
        request.ubatch = &ubatch;
        request.memory = memory.get();
        const ggml_backend_sched_ptr sched(model_.new_sched(model_.max_nodes()));
        request.sched = sched.get();
        request.n_outputs = 1;
        legal_cuts_ = find_legal_cuts(model_, request);
        legal_cuts_known_ = true;
    }
    return legal_cuts_;
}

void Decoder::set_plan(const Plan & plan) {
    if (!alive_.empty()) {
        throw PlanError("the plan cannot change while sequences are alive; remove them first");
    }
    check_plan(plan, model_.n_layer(), plan.empty() ? std::vector<int32_t>() : legal_cuts());
    const std::vector<StageRange> ranges = stage_ranges(plan, model_.n_layer());
    if (same_ranges(stages_, ranges)) {
        check_score_layers(plan, stages_);
    } else {
        // all that can throw comes before the first change
        Stages stages;
        std::vector<StageCache *> caches;
        for (const StageRange & range : ranges) {
            stages.push_back(std::make_unique<Stage>(model_, range));
            caches.push_back(&stages.back()->cache());
        }
        check_score_layers(plan, stages);
        auto chain = std::make_unique<DecodeChain>(model_, caches, ranges);
        chain_ = std::move(chain);
        stages_ = std::move(stages);
    }
    plan_ = plan;
}

void Decoder::check_score_layers(const Plan & plan, const Stages & stages) {
    for (const Cut & cut : plan) {
        for (const auto & stage : stages) {
            if (cut.policy.needs != ScoreKind::none && stage->range().il_last == cut.after &&
                stage->score_layer() < 0) {
                throw PlanError("policy " + cut.policy.name + " after " + std::to_string(cut.after) +
                                " layers: layers " + std::to_string(stage->range().il_first) + " to " +
                                std::to_string(cut.after - 1) +
                                " hold no full-attention layer to score from; move the cut behind one");
            }
        }
    }
}

void Decoder::check_prompt(const Sequence & seq, const PrefillOptions & options) const {
    if (seq.rows.empty()) {
        throw StageError("the prompt is empty");
    }
    if (!seq.images.empty() && seq.n_embd_inp != model_.n_embd_inp()) {
        throw ImageError("the image tokens are " + std::to_string(seq.n_embd_inp) + " wide, this model takes " +
                         std::to_string(model_.n_embd_inp()));
    }
    for (const Row & row : seq.rows) {
        if (row.kind == RowKind::text) {
            check_token(model_, row.token);
        }
    }
    const bool glm4 = model_.arch() == "glm4" || model_.arch() == "glm4moe";
    if (glm4 && !seq.images.empty() && model_.n_pos_per_embd() == 1) {
        throw ImageError("this GLM-4V file was converted without M-RoPE sections, and llama.cpp takes no images with "
                         "it; convert it again");
    }
    if (options.n_predict < 0) {
        throw StageError("n_predict must be at least 0, got " + std::to_string(options.n_predict));
    }
    if (options.seq_id < 0 || options.seq_id >= model_.params().n_seq_max) {
        throw StageError("sequence id " + std::to_string(options.seq_id) +
                         " is outside 0 to n_seq_max - 1 = " + std::to_string(model_.params().n_seq_max - 1));
    }
    if (static_cast<int64_t>(seq.n_pos) + options.n_predict > model_.params().n_ctx) {
        throw StageError("the prompt takes " + std::to_string(seq.n_pos) + " positions (" +
                         std::to_string(seq.n_image_tokens()) + " of them image tokens) and " +
                         std::to_string(options.n_predict) + " are to be generated, but the context holds " +
                         std::to_string(model_.params().n_ctx) + "; raise n_ctx (--ctx-size)");
    }
}

PrefillResult Decoder::prefill(const Sequence & seq, const PrefillOptions & options, Interrupt & interrupt) {
    check_prompt(seq, options);
    check_plan_for(plan_, seq);
    remove(options.seq_id);
    alive_[options.seq_id] = seq.n_pos;
    try {
        return run(seq, options, interrupt);
    } catch (...) {
        remove(options.seq_id);
        throw;
    }
}

PrefillResult Decoder::run(const Sequence & seq, const PrefillOptions & options, Interrupt & interrupt) {
    PrefillResult result;
    std::vector<int32_t> live(seq.rows.size());
    for (size_t i = 0; i < live.size(); ++i) {
        live[i] = static_cast<int32_t>(i);
    }
    HiddenRows hidden;
    StageOutput out;
    if (!scheduler_) {
        scheduler_ = std::make_unique<Scheduler>(model_);
    }
    auto cut = plan_.begin();
    Progress progress{model_.n_layer(), 0.0};
    const auto make_cut = [&] {
        result.cuts.push_back(choose(*cut, seq, live, out.scores, progress));
        compact(seq, result.cuts.back().choice.kept, hidden.row_size(), live, hidden.data());
        ++cut;
    };
    if (cut != plan_.end() && cut->after == 0) {
        make_cut();
    }
    const bool alone = model_.params().n_seq_max == 1;
    int32_t n_ubatch = model_.params().n_ubatch;
    for (const ImageSpan & span : seq.images) {
        n_ubatch = span.causal ? n_ubatch : std::max(n_ubatch, span.n_tokens);  // such an image is one ubatch
    }
    for (const auto & stage : stages_) {
        const int32_t n_image_tokens = n_live_image_tokens(seq, live);
        if (alone || stage->cache().bytes() == 0) {
            const int32_t n_cells =
                alone ? static_cast<int32_t>(live.size()) + options.n_predict : model_.params().n_ctx;
            if (stage->cache().reserve(n_cells, n_ubatch)) {
                chain_->reset();
            }
        }
        StageInput in;
        in.seq = &seq;
        in.live = &live;
        in.seq_id = options.seq_id;
        in.score = cut != plan_.end() && n_image_tokens > 0 ? cut->policy.needs : ScoreKind::none;
        in.merge_kinds = live.size() < seq.rows.size();
        in.all_logits = options.all_logits;
        scheduler_->forget_plan();
        out = stage->prefill(in, hidden, scheduler_->get(), interrupt);
        progress.spent += static_cast<double>(n_image_tokens) * (stage->range().il_last - stage->range().il_first);
        if (cut != plan_.end()) {
            make_cut();
        }
    }
    result.logits = std::move(out.logits);
    return result;
}

void Decoder::check_rows(const std::vector<DecodeRow> & rows) const {
    if (rows.empty()) {
        throw StageError("a decode step needs at least one row");
    }
    std::map<int32_t, int32_t> next = alive_;
    for (const DecodeRow & row : rows) {
        const auto at = next.find(row.seq_id);
        if (at == next.end()) {
            throw StageError("sequence " + std::to_string(row.seq_id) + " is not alive; prefill it first");
        }
        check_token(model_, row.token);
        if (row.pos < at->second) {
            throw StageError("position " + std::to_string(row.pos) + " of sequence " + std::to_string(row.seq_id) +
                             " is taken; it goes on at " + std::to_string(at->second));
        }
        if (row.pos >= model_.params().n_ctx) {
            throw StageError("position " + std::to_string(row.pos) + " is outside the context of " +
                             std::to_string(model_.params().n_ctx) + "; raise n_ctx (--ctx-size)");
        }
        at->second = row.pos + 1;
    }
}

std::vector<float> Decoder::decode(const std::vector<DecodeRow> & rows, Interrupt & interrupt) {
    check_rows(rows);
    try {
        std::vector<float> logits = chain_->step(rows, interrupt);
        for (const DecodeRow & row : rows) {
            alive_[row.seq_id] = row.pos + 1;
        }
        return logits;
    } catch (...) {
        // some stages may hold the token and some not: such a sequence cannot go on
        for (const DecodeRow & row : rows) {
            remove(row.seq_id);
        }
        throw;
    }
}

void Decoder::remove(int32_t seq_id) {
    if (alive_.erase(seq_id) == 0) {
        return;
    }
    for (const auto & stage : stages_) {
        stage->cache().remove(seq_id);
    }
}

void Decoder::release() {
    alive_.clear();
    scheduler_.reset();
    if (chain_) {
        chain_->reset();
    }
    for (const auto & stage : stages_) {
        stage->cache().release();
    }
}

size_t Decoder::kv_bytes() const {
    size_t sum = 0;
    for (const auto & stage : stages_) {
        sum += stage->cache().bytes();
    }
    return sum;
}

size_t Decoder::compute_bytes() const {
    return scheduler_ ? scheduler_->bytes() : 0;
}

std::vector<int32_t> Decoder::n_cells() const {
    std::vector<int32_t> cells;
    for (const auto & stage : stages_) {
        cells.push_back(stage->cache().n_cells());
    }
    return cells;
}

std::vector<float> Decoder::plain_logits(std::vector<int32_t> tokens) const {
    std::vector<float> out;
    const auto n = static_cast<int32_t>(tokens.size());
    const llama_context_ptr plain(model_.new_context(n, n));
    for (const auto & [first, count] : {std::pair<int32_t, int32_t>{0, n - 1}, {n - 1, 1}}) {
        if (llama_decode(plain.get(), llama_batch_get_one(tokens.data() + first, count)) != 0) {
            throw StageError("llama_decode failed on the self-test of " + model_.params().path);
        }
        const float * logits = llama_get_logits_ith(plain.get(), -1);
        out.insert(out.end(), logits, logits + model_.n_vocab());
    }
    return out;
}

double Decoder::self_test(const std::vector<int32_t> & cuts) {
    const int32_t n = std::min(33, model_.params().n_ctx);
    if (n < 2) {
        return 0.0;  // no room for a prompt and a step: nothing can be pruned in such a context either
    }
    const std::vector<int32_t> tokens = test_tokens(n, model_.n_vocab());
    const std::vector<float> reference = plain_logits(tokens);
    Plan plan;
    for (const int32_t after : cuts) {
        plan.push_back({after, find_policy("none"), 1.0, 0});
    }
    // the plain context is as short as the test, and some RoPE factors depend on that length
    const ContextLength same_length(model_, n);
    const Plan before = plan_;
    const auto restore = [&] {
        release();
        set_plan(before);
    };
    std::vector<float> staged;
    try {
        set_plan(plan);
        Sequence seq;
        for (int32_t i = 0; i + 1 < n; ++i) {
            seq.add_text(tokens[i]);
        }
        Interrupt never;
        staged = prefill(seq, {0, 1, false}, never).logits;
        const std::vector<float> step = decode({{0, tokens[n - 1], n - 1}}, never);
        staged.insert(staged.end(), step.begin(), step.end());
    } catch (...) {
        restore();
        throw;
    }
    restore();
    if (staged.size() != reference.size()) {
        throw StageError("the staged model gives " + std::to_string(staged.size()) + " logits, llama.cpp " +
                         std::to_string(reference.size()));
    }
    return nmse(reference, staged.data());
}

}  // namespace atp
