#include "decoder/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/errors.h"
#include "llama/llama_private.h"
#include "llama/model.h"
#include "prune/cut_walk.h"

namespace atp {

namespace {

// a new plan mostly has the same stages: rebuilding them for every caption would cost one graph for each stage
bool same_ranges(const std::vector<std::unique_ptr<Stage>> & stages, const std::vector<StageRange> & ranges) {
    return stages.size() == ranges.size() &&
           std::equal(ranges.begin(), ranges.end(), stages.begin(), [](StageRange r, const std::unique_ptr<Stage> & s) {
               return s->range().il_first == r.il_first && s->range().il_last == r.il_last;
           });
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

const Borders & Decoder::borders() {
    if (!borders_) {
        StageCache cache(model_, {0, model_.n_layer()});
        Batcher batcher(model_);
        constexpr int32_t n_probe = 2;
        cache.reserve(n_probe, n_probe, 1);
        const llama_ubatch ubatch = batcher.dummy(n_probe, false);
        const auto memory = cache.memory()->init_full();
        const ggml_backend_sched_ptr sched = model_.new_sched(model_.max_nodes());
        borders_ = find_borders(model_, probe_request(ubatch, *memory, sched.get(), cache.has_guests()));
    }
    return *borders_;
}

void Decoder::set_plan(const Plan & plan) {
    if (!alive_.empty()) {
        throw PlanError("the plan cannot change while sequences are alive; remove them first");
    }
    check_plan(plan, model_.n_layer(), plan.empty() ? Borders() : borders());
    const std::vector<StageRange> ranges = stage_ranges(plan, model_.n_layer());
    if (same_ranges(stages_, ranges)) {
        check_scores(plan, stages_);
    } else {
        // every call that can throw comes before the first change
        Stages stages;
        std::vector<StageCache *> caches;
        for (const StageRange & range : ranges) {
            stages.push_back(std::make_unique<Stage>(model_, range));
            caches.push_back(&stages.back()->cache());
        }
        check_scores(plan, stages);
        auto chain = std::make_unique<DecodeChain>(model_, caches, ranges);
        chain_ = std::move(chain);
        stages_ = std::move(stages);
        room_.close();
        shared_.clear();
    }
    plan_ = plan;
}

void Decoder::check_scores(const Plan & plan, const Stages & stages) {
    for (const Cut & cut : plan) {
        for (const auto & stage : stages) {
            if (cut.policy.needs != ScoreKind::none && stage->range().il_last == cut.after &&
                !stage->why_no_score().empty()) {
                throw PlanError("policy " + cut.policy.name + " after " + std::to_string(cut.after) +
                                " layers: " + stage->why_no_score());
            }
        }
    }
}

// the rows of an image that see each other in both directions must be in one ubatch
int32_t Decoder::n_rows_at_once(const Sequence & seq) const {
    int32_t n = model_.params().n_ubatch;
    for (const ImageSpan & span : seq.images) {
        n = span.causal ? n : std::max(n, span.n_tokens);
    }
    return n;
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
    const int32_t n_seq = room_.is_open() ? n_parallel_ : model_.params().n_seq_max;
    if (options.seq_id < 0 || options.seq_id >= n_seq) {
        throw StageError("sequence id " + std::to_string(options.seq_id) +
                         " is outside 0 to n_seq_max - 1 = " + std::to_string(n_seq - 1));
    }
    if (static_cast<int64_t>(seq.n_pos) + options.n_predict > model_.params().n_ctx) {
        throw StageError("the prompt takes " + std::to_string(seq.n_pos) + " positions (" +
                         std::to_string(seq.n_image_tokens()) + " of them image tokens) and " +
                         std::to_string(options.n_predict) + " are to be generated, but the context holds " +
                         std::to_string(model_.params().n_ctx) + "; raise n_ctx (--ctx-size)");
    }
}

// a NaN stays in its cache cells and would reach later captions through them, because 0 * NaN is NaN
void Decoder::check_values(const Sequence & seq) const {
    constexpr uint32_t exponent = 0x7F800000;
    uint32_t found = 0;
    for (const float & value : seq.embd) {
        uint32_t bits = 0;
        std::memcpy(&bits, &value, sizeof(bits));
        found |= static_cast<uint32_t>((bits & exponent) == exponent);
    }
    if (found) {
        throw ImageError(
            "the image tokens hold values that are no numbers; the vision projector's file may be damaged");
    }
}

PrefillResult Decoder::prefill(const Sequence & seq, const PrefillOptions & options, Interrupt & interrupt) {
    check_prompt(seq, options);
    check_values(seq);
    check_plan_for(plan_, seq);
    remove(options.seq_id);
    PrefillResult result;
    if (room_.is_open() && !admit(seq, options, result, interrupt)) {
        result.has_room = false;
        return result;
    }
    alive_[options.seq_id] = seq.n_pos;
    try {
        run(seq, options, interrupt, result);
    } catch (...) {
        dirty_ = true;
        remove(options.seq_id);
        throw;
    }
    if (!result.has_room) {
        remove(options.seq_id);
    }
    look_for_nan(result.logits);
    return result;
}

// a prompt that runs alone gets a cache of exactly its size
void Decoder::size_cache(Stage & stage, int32_t n_rows, int32_t n_ubatch) {
    const int32_t n_seq = model_.params().n_seq_max;
    if (n_seq == 1 || stage.cache().bytes() == 0) {
        if (stage.cache().reserve(n_seq == 1 ? n_rows : model_.params().n_ctx, n_ubatch, n_seq)) {
            chain_->reset();
        }
    }
}

void Decoder::run(const Sequence & seq, const PrefillOptions & options, Interrupt & interrupt, PrefillResult & result) {
    HiddenRows hidden;
    StageOutput out;
    if (!scheduler_) {
        scheduler_ = std::make_unique<Scheduler>(model_);
    }
    CutWalk walk(plan_, seq, model_.n_layer(), result.n_shared);
    for (size_t s = 0; s < stages_.size(); ++s, walk.pass()) {
        Stage & stage = *stages_[s];
        if (const Cut * cut = walk.due()) {
            result.cuts.push_back(decide_cut(*cut, seq, walk.live(), out.scores, walk.progress()));
            walk.keep(result.cuts.back().choice.kept, hidden.row_size(), hidden.data());
        }
        const auto n_live = static_cast<int32_t>(walk.live().size());
        const int32_t n_cells = n_live + options.n_predict;
        if (room_.is_open()) {
            result.n_cells[s] = n_cells;
            result.has_room = room_.fits(s, n_cells);
            if (!result.has_room) {
                return;
            }
            room_.take(options.seq_id, s, n_cells);
        } else {
            size_cache(stage, n_cells, n_rows_at_once(seq));
        }
        if (goes_aside()) {
            prepare_side(stage, n_live, result.n_shared, n_rows_at_once(seq));
        }
        StageInput in;
        in.seq = &seq;
        in.live = &walk.live();
        in.seq_id = goes_aside() ? 0 : options.seq_id;
        in.cache = goes_aside() ? &stage.side_cache() : &stage.cache();
        in.score = walk.needs();
        in.merge_kinds = walk.live().size() + result.n_shared < seq.rows.size();
        in.all_logits = options.all_logits;
        scheduler_->forget_plan();
        out = stage.prefill(in, hidden, scheduler_->get(), interrupt);
        if (goes_aside()) {
            join(stage, options.seq_id, result.n_shared);
        }
    }
    result.logits = std::move(out.logits);
}

// one value of each row is enough: a row is normalised as a whole, so one NaN makes the whole row NaN
void Decoder::look_for_nan(const std::vector<float> & logits) {
    for (size_t i = 0; i < logits.size(); i += model_.n_vocab()) {
        dirty_ = dirty_ || std::isnan(logits[i]);
    }
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
        look_for_nan(logits);
        return logits;
    } catch (...) {
        // some stages may have stored the token and others not, so these sequences cannot go on
        dirty_ = true;
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
    room_.give_back(seq_id);
    for (const auto & stage : stages_) {
        stage->cache().remove(seq_id);
    }
    if (dirty_ && alive_.empty()) {
        forget_shared();
        for (const auto & stage : stages_) {
            stage->cache().wipe();
            stage->side_cache().wipe();
        }
        dirty_ = false;
    }
}

void Decoder::release() {
    alive_.clear();
    room_.close();
    shared_.clear();
    scheduler_.reset();
    if (chain_) {
        chain_->reset();
    }
    for (const auto & stage : stages_) {
        stage->cache().release();
        stage->side_cache().release();
    }
}

size_t Decoder::kv_bytes() const {
    size_t sum = 0;
    for (const auto & stage : stages_) {
        sum += stage->cache().bytes() + stage->side_cache().bytes();
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

}  // namespace atp
