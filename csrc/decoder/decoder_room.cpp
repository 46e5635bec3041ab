// The part of Decoder for several prompts in shared caches: their room, and the shared text that is computed once.
#include <algorithm>

#include "base/errors.h"
#include "decoder/decoder.h"
#include "llama/llama_private.h"
#include "llama/model.h"

namespace atp {

bool Decoder::can_batch() const {
    return model_.memory_kind() != MemoryKind::other;
}

void Decoder::reserve(const std::vector<int32_t> & n_cells, int32_t n_parallel) {
    const int32_t most = can_batch() ? LLAMA_MAX_SEQ - 1 : 1;  // one id is for the shared text
    if (!alive_.empty()) {
        throw StageError("room can be reserved only while no sequence is alive; there are " +
                         std::to_string(alive_.size()));
    }
    if (n_parallel < 1 || n_parallel > most) {
        throw StageError("n_parallel must be 1 to " + std::to_string(most) +
                         (can_batch() ? "" : " for architecture '" + model_.arch() + "'") + ", got " +
                         std::to_string(n_parallel));
    }
    if (n_cells.size() != stages_.size()) {
        throw StageError("expected numbers of cells for " + std::to_string(stages_.size()) + " stages, got " +
                         std::to_string(n_cells.size()));
    }
    constexpr int32_t most_cells = 1 << 30;
    for (const int32_t n : n_cells) {
        if (n < 1 || n > most_cells) {
            throw StageError("a stage needs 1 to " + std::to_string(most_cells) + " cells, got " + std::to_string(n));
        }
    }
    close_room();
    room_ubatch_ = std::max(room_ubatch_, model_.params().n_ubatch);
    chain_->reset();
    std::vector<int32_t> real;
    try {
        for (size_t s = 0; s < stages_.size(); ++s) {
            StageCache & cache = stages_[s]->cache();
            cache.reserve(n_cells[s], room_ubatch_, can_batch() ? n_parallel + 1 : 1);
            real.push_back(cache.n_cells());
        }
    } catch (...) {
        release();
        throw;
    }
    n_parallel_ = n_parallel;
    room_.open(std::move(real));
}

void Decoder::close_room() {
    if (room_.is_open()) {
        forget_shared();
        room_.close();
        for (const auto & stage : stages_) {
            stage->side_cache().release();
        }
    }
}

int32_t Decoder::within_context(const Sequence & seq, int32_t n_predict) const {
    const int32_t n_left = model_.params().n_ctx - seq.n_pos;
    return n_left > 0 ? std::min(n_predict, n_left) : n_predict;
}

ExpectedRows Decoder::expect(const Sequence & seq, int32_t n_predict) const {
    ExpectedRows rows = expected_rows(plan_, seq, model_.n_layer());
    for (int32_t & n : rows.n_live) {
        n += n_predict;
    }
    return rows;
}

std::vector<size_t> Decoder::cell_bytes() const {
    std::vector<size_t> bytes;
    for (const auto & stage : stages_) {
        bytes.push_back(stage->cell_bytes());
    }
    return bytes;
}

// in an open room: whether the prompt fits, as far as that is known before prefill. If so, its first rows may come from
// the shared text
bool Decoder::admit(const Sequence & seq, const PrefillOptions & options, PrefillResult & result,
                    Interrupt & interrupt) {
    const int32_t n_ubatch = n_rows_at_once(seq);
    if (n_ubatch > room_ubatch_ && alive_.empty()) {
        room_ubatch_ = n_ubatch;
        reserve(std::vector<int32_t>(room_.n_cells()), n_parallel_);
    }
    const ExpectedRows expected = expect(seq, options.n_predict);
    result.n_cells = expected.n_live;
    const int32_t n_shared = n_shareable(seq);
    for (int32_t & n : result.n_cells) {
        n -= shared_.empty() ? 0 : n_shared;
    }
    const bool fits = expected.exact ? room_.fits(result.n_cells) : room_.fits(0, result.n_cells[0]);
    if (!fits && !shared_.empty() && alive_.empty()) {
        forget_shared();  // free the text shared for an earlier prompt
        return admit(seq, options, result, interrupt);
    }
    if (n_ubatch > room_ubatch_ || !fits) {
        return false;
    }
    result.n_shared = n_shared;
    if (shared_.empty() && result.n_shared > 0) {
        if (!room_.fits(std::vector<int32_t>(stages_.size(), result.n_shared))) {
            return false;
        }
        compute_shared(seq, result.n_shared, interrupt);
    }
    for (const auto & stage : stages_) {
        if (result.n_shared > 0 && !goes_aside()) {
            stage->cache().share(n_parallel_, options.seq_id, result.n_shared);
        }
    }
    return true;
}

// a prompt is prefilled in a side cache: in the common cache, attention would visit the cells of all prompts, even if
// only to skip them
void Decoder::prepare_side(Stage & stage, int32_t n_rows, int32_t n_shared, int32_t n_ubatch) {
    StageCache & side = stage.side_cache();
    side.reserve(n_rows + n_shared, n_ubatch, 1);
    if (dirty_) {
        side.wipe();
    }
    if (n_shared > 0) {
        side.copy(stage.cache(), n_parallel_, 0);
        side.remove(0, n_shared, -1);
    }
}

void Decoder::join(Stage & stage, int32_t seq_id, int32_t n_shared) {
    StageCache & side = stage.side_cache();
    if (n_shared > 0) {
        side.remove(0, 0, n_shared);
    }
    stage.cache().copy(side, 0, seq_id);
    if (n_shared > 0) {
        stage.cache().share(n_parallel_, seq_id, n_shared);
    }
}

// number of first rows whose text the open room holds, or could hold; at least one row is left to compute
int32_t Decoder::n_shareable(const Sequence & seq) const {
    if (!room_.is_open() || model_.memory_kind() == MemoryKind::other) {
        return 0;
    }
    const auto most = std::min<size_t>(seq.n_leading_text(), seq.rows.size() - 1);
    if (shared_.empty()) {
        return static_cast<int32_t>(most);
    }
    size_t n = 0;
    while (n < std::min(most, shared_.size()) && seq.rows[n].token == shared_[n]) {
        ++n;
    }
    // a sliding window keeps only the cells that the row after the whole text sees, so a part of the text is not usable
    const bool usable = model_.memory_kind() == MemoryKind::kv || n == shared_.size();
    return usable ? static_cast<int32_t>(n) : 0;
}

void Decoder::compute_shared(const Sequence & seq, int32_t n_rows, Interrupt & interrupt) {
    Sequence text;
    text.n_embd_inp = seq.n_embd_inp;
    for (int32_t i = 0; i < n_rows; ++i) {
        text.add_text(seq.rows[i].token);
        shared_.push_back(seq.rows[i].token);
    }
    try {
        PrefillResult none;
        none.n_cells.assign(stages_.size(), 0);
        run(text, {n_parallel_, 0, false}, interrupt, none);
    } catch (...) {
        forget_shared();
        throw;
    }
}

void Decoder::forget_shared() {
    if (!shared_.empty()) {
        shared_.clear();
        room_.give_back(n_parallel_);
        for (const auto & stage : stages_) {
            stage->cache().remove(n_parallel_);
        }
    }
}

}  // namespace atp
