// How many cells of each stage's cache each sequence holds. Cells are counted before they are used, so that no caption
// runs out of cells half-way.
//
// Plain numbers: knows no ggml and no captions. Throws nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace atp {

class Room {
  public:
    void open(std::vector<int32_t> n_cells);  // per stage; all cells are free
    void close() { open({}); }
    bool is_open() const { return !n_cells_.empty(); }

    bool fits(size_t stage, int32_t n) const { return n <= n_free(stage); }
    bool fits(const std::vector<int32_t> & n) const;  // per stage
    void take(int32_t seq_id, size_t stage, int32_t n);
    void give_back(int32_t seq_id);

    const std::vector<int32_t> & n_cells() const { return n_cells_; }
    std::vector<int32_t> n_free() const;  // per stage

  private:
    int32_t n_free(size_t stage) const;

    std::vector<int32_t> n_cells_;
    std::map<int32_t, std::vector<int32_t>> taken_;  // by sequence, per stage
};

}  // namespace atp
