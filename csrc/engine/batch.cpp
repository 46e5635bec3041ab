#include "engine/batch.h"

#include <algorithm>

#include "base/errors.h"
#include "base/stopwatch.h"
#include "llama/model.h"

namespace atp {

struct Batch::Caption {
    Generation generation;
    Report report;
    int32_t pos = 0;  // position of the next token
};

Batch::Batch(const Model & model, Decoder & decoder) : model_(model), decoder_(decoder) {}
Batch::~Batch() = default;

int32_t Batch::n_live() const {
    return static_cast<int32_t>(
        std::count_if(slots_.begin(), slots_.end(), [](const auto & s) { return s != nullptr; }));
}

void Batch::check_idle(const std::string & what) const {
    if (n_live() > 0) {
        throw StageError(what + " while " + std::to_string(n_live()) +
                         " captions are under way; step until they ended, or reset");
    }
}

// a caption that ran alone may have changed the decoder's plan in the meantime
void Batch::settle() {
    if (n_live() == 0) {
        decoder_.set_plan(plan_);
    }
}

void Batch::settle_room() {
    if (n_cells_.empty()) {
        throw StageError("there is no room for captions yet; reserve some for this plan");
    }
    settle();
    if (!decoder_.room().is_open()) {
        decoder_.reserve(n_cells_, static_cast<int32_t>(slots_.size()));
    }
}

void Batch::set_plan(const Plan & plan) {
    check_idle("the plan cannot change");
    decoder_.set_plan(plan);
    if (stage_ranges(plan, model_.n_layer()).size() != n_cells_.size()) {
        n_cells_.clear();
    }
    plan_ = plan;
    decoder_.close_room();
}

void Batch::reserve(const std::vector<int32_t> & n_cells, int32_t n_parallel) {
    check_idle("room cannot be reserved");
    settle();
    n_cells_.clear();
    slots_.clear();
    decoder_.reserve(n_cells, n_parallel);
    n_cells_ = n_cells;
    slots_.resize(n_parallel);
}

Started Batch::start(const Sequence & seq, GenerationParams params, Interrupt & interrupt) {
    settle_room();
    const int32_t n_predict = params.n_predict = decoder_.within_context(seq, params.n_predict);
    Caption caption{Generation(model_, std::move(params)), {}, seq.n_pos};
    Started out;
    const auto slot = std::find(slots_.begin(), slots_.end(), nullptr);
    if (slot == slots_.end()) {
        out.n_cells = decoder_.expect(seq, n_predict).n_live;
        return out;
    }
    const auto seq_id = static_cast<int32_t>(slot - slots_.begin());
    const Stopwatch prefill_time;
    const PrefillResult prefill = decoder_.prefill(seq, {seq_id, n_predict, false}, interrupt);
    out.n_cells = prefill.n_cells;
    if (!prefill.has_room) {
        return out;
    }
    try {
        caption.report = make_report(seq, plan_, prefill.cuts, model_.n_layer());
        caption.report.t_prefill = prefill_time.ms();
        const std::vector<size_t> cell_bytes = decoder_.cell_bytes();
        for (size_t s = 0; s < cell_bytes.size(); ++s) {
            caption.report.kv_bytes += prefill.n_cells[s] * cell_bytes[s];
        }
        if (caption.generation.advance(prefill.logits.data())) {
            *slot = std::make_unique<Caption>(std::move(caption));
            out.slot = seq_id;
        } else {
            out.result = finish(caption);
        }
    } catch (...) {
        decoder_.remove(seq_id);
        throw;
    }
    if (out.result) {
        decoder_.remove(seq_id);
    }
    return out;
}

std::vector<std::pair<int32_t, Result>> Batch::step(Interrupt & interrupt) {
    std::vector<DecodeRow> rows;
    for (size_t slot = 0; slot < slots_.size(); ++slot) {
        if (const auto & caption = slots_[slot]) {
            rows.push_back({static_cast<int32_t>(slot), caption->generation.token(), caption->pos});
        }
    }
    std::vector<std::pair<int32_t, Result>> ended;
    if (rows.empty()) {
        return ended;
    }
    try {
        advance(rows, interrupt, ended);
    } catch (...) {
        reset();
        throw;
    }
    return ended;
}

// one step of the captions in `rows`; captions that ended are removed and added to `ended`
void Batch::advance(const std::vector<DecodeRow> & rows, Interrupt & interrupt,
                    std::vector<std::pair<int32_t, Result>> & ended) {
    const Stopwatch time;
    const std::vector<float> logits = decoder_.decode(rows, interrupt);
    const size_t n_vocab = logits.size() / rows.size();
    std::vector<std::string> errors(rows.size());
    std::vector<char> goes_on(rows.size(), 0);
    for (size_t i = 0; i < rows.size(); ++i) {
        Caption & caption = *slots_[rows[i].seq_id];
        ++caption.pos;
        try {
            goes_on[i] = caption.generation.advance(&logits[i * n_vocab]);
        } catch (const AtpError & e) {
            errors[i] = e.what();
        }
    }
    const double share = time.ms() / static_cast<double>(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
        const int32_t slot = rows[i].seq_id;
        slots_[slot]->report.t_decode += share;
        if (!goes_on[i]) {
            Result result = finish(*slots_[slot]);
            result.finish_reason = errors[i].empty() ? result.finish_reason : "error";
            result.error = errors[i];
            drop(slot);
            ended.emplace_back(slot, std::move(result));
        }
    }
}

Result Batch::finish(Caption & caption) {
    return make_result(caption.generation, std::move(caption.report));
}

void Batch::drop(int32_t slot) {
    if (slot < 0 || slot >= static_cast<int32_t>(slots_.size()) || !slots_[slot]) {
        throw StageError("no caption is under way in slot " + std::to_string(slot));
    }
    slots_[slot].reset();
    decoder_.remove(slot);
}

void Batch::reset() {
    for (size_t slot = 0; slot < slots_.size(); ++slot) {
        if (slots_[slot]) {
            drop(static_cast<int32_t>(slot));
        }
    }
}

std::vector<int32_t> Batch::expect(const Sequence & seq, int32_t n_predict) {
    settle();
    return decoder_.expect(seq, decoder_.within_context(seq, n_predict)).n_live;
}

std::vector<size_t> Batch::cell_bytes() {
    settle();
    return decoder_.cell_bytes();
}

std::vector<int32_t> Batch::n_free() {
    settle_room();
    return decoder_.room().n_free();
}

}  // namespace atp
