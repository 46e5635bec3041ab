// One prompt as rows: which are text, which are image tokens, and where each stands.
//
// A row keeps its original position `pos` for ever; its place in the present stage is its index in the list of live
// rows. Knows nothing of llama.cpp or ggml. Nothing here throws.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace atp {

enum class RowKind : uint8_t { text, image };

struct Row {
    RowKind kind = RowKind::text;
    int32_t token = -1;                         // text: the token id
    int32_t image = -1;                         // image: which image of the prompt
    int32_t index = -1;                         // image: index among ALL image tokens of the prompt
    std::array<int32_t, 4> pos = {0, 0, 0, 0};  // sections of the position (M-RoPE: t, y, x, extra)
};

struct ImageSpan {
    int32_t first = 0;  // index of its first image token among all image tokens
    int32_t n_tokens = 0;
    int32_t grid_rows = 0;  // grid_rows * grid_cols is n_tokens, or one more: the last cell is missing
    int32_t grid_cols = 0;
    bool causal = true;  // false: rows of this image see each other in both directions
    int32_t source = 0;  // which image of the prompt, as the caller counts them; some have several spans

    // the cell of image token `index` (counted over all image tokens) on this grid
    int32_t y(int32_t index) const { return (index - first) / grid_cols; }
    int32_t x(int32_t index) const { return (index - first) % grid_cols; }
};

struct Sequence {
    std::vector<Row> rows;
    std::vector<ImageSpan> images;
    std::vector<float> embd;  // [n_image_tokens][n_embd_inp], in the order of Row::index
    int32_t n_embd_inp = 0;
    int32_t n_pos = 0;  // the next position: decoding goes on here, also after pruning

    double t_encode = 0.0;  // ms that the vision encoder took for it

    int32_t n_image_tokens() const;
    int32_t n_leading_text() const;  // text rows before the first image

    // appends one text token at the next position
    void add_text(int32_t token);

    // appends the tokens of one image: embd is [n_tokens][n_embd_inp]; pos (optional) holds absolute positions per
    // token for M-RoPE, and n_pos_used how many positions the image takes (n_tokens when pos is null)
    void add_image(const float * image_embd, ImageSpan span, const std::vector<std::array<int32_t, 4>> * pos,
                   int32_t n_pos_used);
};

// a run of live rows that may share one ubatch: same kind, and for images the same image
struct Segment {
    size_t begin = 0;  // into the list of live rows
    size_t end = 0;
    bool image = false;
    bool causal = true;
};

// splits live rows (indices into seq.rows, ascending) into segments, in order
std::vector<Segment> segments(const Sequence & seq, const std::vector<int32_t> & live);

// drops from `live` the image rows that are not in `kept` (image-token indices, ascending), and the same rows from
// `hidden` ([n_live][row_size], may be empty); text rows always stay
void compact(const Sequence & seq, const std::vector<int32_t> & kept, size_t row_size, std::vector<int32_t> & live,
             std::vector<float> & hidden);

}  // namespace atp
