#include "decoder/room.h"

namespace atp {

void Room::open(std::vector<int32_t> n_cells) {
    n_cells_ = std::move(n_cells);
    taken_.clear();
}

int32_t Room::n_free(size_t stage) const {
    int32_t n = n_cells_[stage];
    for (const auto & [seq_id, taken] : taken_) {
        n -= taken[stage];
    }
    return n;
}

std::vector<int32_t> Room::n_free() const {
    std::vector<int32_t> out;
    for (size_t s = 0; s < n_cells_.size(); ++s) {
        out.push_back(n_free(s));
    }
    return out;
}

bool Room::fits(const std::vector<int32_t> & n) const {
    for (size_t s = 0; s < n_cells_.size(); ++s) {
        if (!fits(s, n[s])) {
            return false;
        }
    }
    return true;
}

void Room::take(int32_t seq_id, size_t stage, int32_t n) {
    std::vector<int32_t> & taken = taken_[seq_id];
    taken.resize(n_cells_.size(), 0);
    taken[stage] += n;
}

void Room::give_back(int32_t seq_id) {
    taken_.erase(seq_id);
}

}  // namespace atp
