#include "stages/stage_cache.h"

#include "base/errors.h"
#include "llama/llama_private.h"
#include "llama/log_capture.h"
#include "llama/memory_room.h"
#include "llama/model.h"
#include "stages/cache_copy.h"

namespace atp {

namespace {

// Which layers get buffers. llama_kv_cache asks filter(il) for every layer, then in a second pass reuse(il) and, where
// that names a layer, filter(il) again. Foreign layers must be refused in the first pass (no buffer) and accepted in
// the second (the full graph is built before it is cut, so every layer needs SOME buffer to point at). A filter call
// that follows reuse(il) with the same il belongs to the second pass.
struct LayerOwner {
    const llama_hparams & hparams;
    StageRange range;
    bool iswa = false;
    int32_t stand_in_full = -1;  // a layer of a kind that the stage lacks, so that both caches of iSWA exist
    int32_t stand_in_swa = -1;
    int32_t asked_reuse = -1;

    LayerOwner(const llama_hparams & hp, StageRange r, bool is_iswa) : hparams(hp), range(r), iswa(is_iswa) {
        if (!iswa) {
            return;
        }
        bool has_full = false;
        bool has_swa = false;
        for (int32_t il = r.il_first; il < r.il_last; ++il) {
            (hp.is_swa(il) ? has_swa : has_full) = true;
        }
        for (int32_t il = static_cast<int32_t>(hp.n_layer_all) - 1; il >= 0; --il) {
            if (hp.is_swa(il) && !has_swa) {
                stand_in_swa = il;
            }
            if (!hp.is_swa(il) && !has_full) {
                stand_in_full = il;
            }
        }
    }

    bool owns(int32_t il) const {
        return (il >= range.il_first && il < range.il_last) || il == stand_in_full || il == stand_in_swa;
    }

    int32_t target(int32_t il) const {
        for (int32_t own = range.il_first; own < range.il_last; ++own) {
            if (!iswa || hparams.is_swa(own) == hparams.is_swa(il)) {
                return own;
            }
        }
        return hparams.is_swa(il) ? stand_in_swa : stand_in_full;
    }

    bool filter(int32_t il) {
        const bool second_pass = asked_reuse == il;
        asked_reuse = -1;
        return second_pass || owns(il);
    }

    int32_t reuse(int32_t il) {
        asked_reuse = il;
        return owns(il) ? -1 : target(il);
    }
};

// the memory of all layers, as llama.cpp makes it: exact for every architecture, but it takes more bytes
llama_memory_i * whole_memory(const Model & model, uint32_t n_cells, uint32_t n_seq) {
    llama_memory_params mp = {};
    mp.type_k = model.type_k();
    mp.type_v = model.type_v();
    mp.swa_full = true;
    mp.ctx_type = model.cparams().ctx_type;
    llama_cparams wide = model.cparams();
    wide.n_ctx = wide.n_ctx_seq = n_cells;
    wide.n_seq_max = n_seq;
    return model.llama()->create_memory(mp, wide);
}

void check_layers(const llama_kv_cache & cache, const LayerOwner & owner) {
    for (const uint32_t il : cache.get_layer_ids()) {
        if (!owner.owns(static_cast<int32_t>(il))) {
            throw StageError("the stage cache allocated layer " + std::to_string(il) + ", which is not its own");
        }
    }
}

// a foreign layer points at the cache of one of the stage's layers, so rows of both layers must be equally wide
bool equal_heads(const llama_hparams & hp, bool iswa) {
    for (uint32_t il = 1; il < hp.n_layer(); ++il) {
        for (uint32_t other = 0; other < il; ++other) {
            const bool one_kind = !iswa || hp.is_swa(il) == hp.is_swa(other);
            if (one_kind &&
                (hp.n_embd_k_gqa(il) != hp.n_embd_k_gqa(other) || hp.n_embd_v_gqa(il) != hp.n_embd_v_gqa(other))) {
                return false;
            }
        }
    }
    return true;
}

// whether a cache that holds only the stage's layers can be made
bool can_own_layers_only(const Model & model) {
    const llama_hparams & hp = model.llama()->hparams;
    const bool iswa = model.memory_kind() == MemoryKind::kv_iswa;
    return model.memory_kind() != MemoryKind::other && hp.n_layer_kv_from_start < 0 && hp.n_layer_nextn == 0 &&
           equal_heads(hp, iswa);
}

llama_memory_i * build(const Model & model, StageRange range, uint32_t n_cells, uint32_t n_ubatch, uint32_t n_seq) {
    const llama_model & m = *model.llama();
    const llama_hparams & hp = m.hparams;
    const llama_cparams & cp = model.cparams();
    const bool plain = model.memory_kind() == MemoryKind::kv;
    const bool iswa = model.memory_kind() == MemoryKind::kv_iswa;
    const bool whole_model = range.il_first == 0 && range.il_last == model.n_layer();
    if (!can_own_layers_only(model) || (plain && whole_model)) {
        return whole_memory(model, n_cells, n_seq);
    }
    LayerOwner owner(hp, range, iswa);
    const auto filter = [&](int32_t il) { return owner.filter(il); };
    const auto reuse = [&](int32_t il) { return owner.reuse(il); };
    if (plain) {
        auto cache = std::make_unique<llama_kv_cache>(m, hp, model.type_k(), model.type_v(), !cp.flash_attn,
                                                      cp.offload_kqv, cp.kv_unified, n_cells, n_seq, 1, hp.n_swa,
                                                      hp.swa_type, nullptr, filter, reuse, nullptr);
        check_layers(*cache, owner);
        return cache.release();
    }
    auto cache = std::make_unique<llama_kv_cache_iswa>(m, model.type_k(), model.type_v(), !cp.flash_attn,
                                                       cp.offload_kqv, /*swa_full*/ false, cp.kv_unified, n_cells,
                                                       n_seq, n_ubatch, 1, nullptr, filter, reuse, nullptr);
    check_layers(*cache->get_base(), owner);
    check_layers(*cache->get_swa(), owner);
    return cache.release();
}

size_t bytes_of(const llama_memory_i & memory) {
    size_t sum = 0;
    for (const auto & entry : memory.memory_breakdown()) {
        sum += entry.second;
    }
    return sum;
}

}  // namespace

StageCache::StageCache(const Model & model, StageRange range)
    : model_(model), range_(range),
      has_guests_(can_own_layers_only(model) && (range.il_first > 0 || range.il_last < model.n_layer())) {}
StageCache::~StageCache() = default;

int32_t StageCache::cell_step(const Model & model) {
    // GPU attention kernels need a number of cells that is a multiple of 256. A CPU does not, and small steps keep the
    // cache small
    return model.all_on_cpu() ? 64 : 256;
}

bool StageCache::reserve(int32_t n_cells, int32_t n_ubatch, int32_t n_seq) {
    const int32_t step = cell_step(model_);
    const int32_t wanted = (n_cells + step - 1) / step * step;
    if (memory_ && wanted == n_cells_ && n_ubatch == n_ubatch_ && n_seq == n_seq_) {
        memory_->clear(false);
        return false;
    }
    release();
    log_capture::clear();
    try {
        check_room(0, "a KV cache");
        memory_.reset(build(model_, range_, wanted, n_ubatch, n_seq));
    } catch (const AtpError &) {
        throw;
    } catch (const std::exception & e) {
        throw NoMemory("no memory for a KV cache of " + std::to_string(wanted) + " cells, layers " +
                       std::to_string(range_.il_first) + " to " + std::to_string(range_.il_last - 1) + ": " + e.what() +
                       "; use a smaller context or a smaller KV type");
    }
    n_cells_ = wanted;
    n_ubatch_ = n_ubatch;
    n_seq_ = n_seq;
    return true;
}

size_t StageCache::bytes() const {
    return memory_ ? bytes_of(*memory_) : 0;
}

size_t StageCache::cell_bytes() const {
    if (!memory_) {
        return 0;
    }
    // sliding windows have their own cells, and another number of cells
    if (const auto * iswa = dynamic_cast<const llama_kv_cache_iswa *>(memory_.get())) {
        const llama_kv_cache * base = iswa->get_base();
        const llama_kv_cache * swa = iswa->get_swa();
        return bytes_of(*base) / base->get_size() + bytes_of(*swa) / swa->get_size();
    }
    return (bytes_of(*memory_) + n_cells_ - 1) / n_cells_;
}

void StageCache::share(int32_t from, int32_t to, int32_t n_pos) {
    memory_->seq_cp(from, to, 0, n_pos);
}

void StageCache::copy(const StageCache & other, int32_t from, int32_t to) {
    copy_sequence(*other.memory_, from, *memory_, to);
}

void StageCache::remove(int32_t seq_id, int32_t first, int32_t last) {
    memory_->seq_rm(seq_id, first, last);
}

void StageCache::remove(int32_t seq_id) {
    if (memory_) {
        memory_->seq_rm(seq_id, -1, -1);
    }
}

void StageCache::wipe() {
    if (memory_) {
        memory_->clear(true);
    }
}

void StageCache::release() {
    memory_.reset();
    n_cells_ = 0;
}

}  // namespace atp
