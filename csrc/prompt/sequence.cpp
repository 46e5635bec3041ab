#include "prompt/sequence.h"

#include <algorithm>
#include <cstring>

namespace atp {

int32_t Sequence::n_image_tokens() const {
    return images.empty() ? 0 : images.back().first + images.back().n_tokens;
}

int32_t Sequence::n_leading_text() const {
    const auto first = std::find_if(rows.begin(), rows.end(), [](const Row & r) { return r.kind == RowKind::image; });
    return static_cast<int32_t>(first - rows.begin());
}

void Sequence::add_text(int32_t token) {
    Row row;
    row.token = token;
    row.pos = {n_pos, n_pos, n_pos, n_pos};
    rows.push_back(row);
    ++n_pos;
}

void Sequence::add_image(const float * image_embd, ImageSpan span, const std::vector<std::array<int32_t, 4>> * pos,
                         int32_t n_pos_used) {
    span.first = n_image_tokens();
    for (int32_t i = 0; i < span.n_tokens; ++i) {
        Row row;
        row.kind = RowKind::image;
        row.image = static_cast<int32_t>(images.size());
        row.index = span.first + i;
        row.pos = pos ? (*pos)[i] : std::array<int32_t, 4>{n_pos + i, n_pos + i, n_pos + i, n_pos + i};
        rows.push_back(row);
    }
    embd.insert(embd.end(), image_embd, image_embd + static_cast<size_t>(span.n_tokens) * n_embd_inp);
    images.push_back(span);
    n_pos += n_pos_used;
}

std::vector<Segment> segments(const Sequence & seq, const std::vector<int32_t> & live) {
    std::vector<Segment> out;
    for (size_t i = 0; i < live.size(); ++i) {
        const Row & row = seq.rows[live[i]];
        const bool starts =
            i == 0 || seq.rows[live[i - 1]].kind != row.kind || seq.rows[live[i - 1]].image != row.image;
        if (starts) {
            const bool image = row.kind == RowKind::image;
            out.push_back({i, i, image, !image || seq.images[row.image].causal});
        }
        out.back().end = i + 1;
    }
    return out;
}

void compact(const Sequence & seq, const std::vector<int32_t> & kept, size_t row_size, std::vector<int32_t> & live,
             std::vector<float> & hidden) {
    size_t n = 0;
    for (size_t i = 0; i < live.size(); ++i) {
        const Row & row = seq.rows[live[i]];
        if (row.kind == RowKind::image && !std::binary_search(kept.begin(), kept.end(), row.index)) {
            continue;
        }
        if (!hidden.empty() && n != i) {
            std::memcpy(&hidden[n * row_size], &hidden[i * row_size], row_size * sizeof(float));
        }
        live[n++] = live[i];
    }
    live.resize(n);
    if (!hidden.empty()) {
        hidden.resize(n * row_size);
    }
}

}  // namespace atp
