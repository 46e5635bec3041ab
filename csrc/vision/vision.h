// Image -> image tokens: libmtmd resizes, encodes and projects, we lay text and image tokens out as one Sequence.
//
// In:  a prompt with one media marker per image; per image RGB pixels (uint8 [h][w][3]), which libmtmd prepares as it
//      sees fit, or tiles (uint8 [n][side][side][3]), which are encoded as they are and packed by anyres.
// Between: a PreparedPrompt, which any thread may make while another encodes.
// Out: a Sequence whose image rows carry projected embeddings [n_image_tokens][n_embd_inp] and a patch grid each.
// Owns the projector. Knows no stages. Throws ModelError (projector file), ImageError (an image).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/interrupt.h"
#include "prompt/anyres.h"
#include "prompt/sequence.h"
#include "vision/projector_file.h"

struct mtmd_context;
struct mtmd_input_chunk;
struct mtmd_input_chunks;

namespace atp {

class Model;

struct RgbImage {
    const uint8_t * data = nullptr;  // [height][width][3]; tiles: [n_tiles][height][width][3]
    int32_t width = 0;
    int32_t height = 0;
    std::optional<TileSet> tiles;  // the image comes as squares of the encoder's size

    // one of its tiles as an image of its own
    RgbImage tile(int32_t i) const { return {data + static_cast<size_t>(i) * height * width * 3, width, height, {}}; }
};

// rows of image tokens, of all images in order
struct KnownRows {
    const float * data = nullptr;  // [n_tokens][n_embd]
    size_t n_tokens = 0;
    size_t n_embd = 0;
};

struct VisionParams {
    std::string path;       // the projector's file
    int32_t n_threads = 0;  // of the encoder; 0: as many as the model has
};

// A prompt in libmtmd's parts. Its images are resized and normalised; only the encoder's work is left. The pixels of
// tiles are still needed: they must live as long as this object.
struct PreparedPrompt {
    std::unique_ptr<mtmd_input_chunks, void (*)(mtmd_input_chunks *)> chunks;
    std::vector<RgbImage> images;
    uint64_t made_by = 0;  // a Vision's id
};

class Vision {
  public:
    Vision(const Model & model, const VisionParams & params);
    ~Vision();

    // from any thread
    PreparedPrompt prepare(const std::string & prompt, const std::vector<RgbImage> & images) const;

    // call it from one thread at a time, with a prompt that this object prepared. known: the result of an earlier
    // encode of the same images; then the encoder does not run
    Sequence encode(const PreparedPrompt & prompt, const std::optional<KnownRows> & known, Interrupt & interrupt) const;

    static std::string media_marker();

  private:
    void check_image(const RgbImage & image) const;
    void check_tiles(const RgbImage & image) const;
    void tokenize(const std::string & prompt, const std::vector<RgbImage> & images, bool add_special,
                  mtmd_input_chunks * out) const;
    const float * encode_chunk(const mtmd_input_chunk * chunk) const;
    const float * known_rows(const KnownRows & known, const Sequence & seq, size_t n_tokens) const;
    void add_image(Sequence & seq, const mtmd_input_chunk * chunk, const RgbImage & image,
                   const std::optional<KnownRows> & known, Interrupt & interrupt) const;
    void set_grid(ImageSpan & span, const mtmd_input_chunk * chunk,
                  const std::vector<std::array<int32_t, 4>> & pos) const;
    void write_breaks(Sequence & seq, const ImageSpan & span) const;
    void add_image_chunk(Sequence & seq, const mtmd_input_chunk * chunk, const float * embd) const;
    void add_tiles(Sequence & seq, const mtmd_input_chunk * chunk, const std::vector<ImageSpan> & spans,
                   const float * rows) const;
    std::vector<float> encode_tiles(const mtmd_input_chunk * first, const RgbImage & image,
                                    Interrupt & interrupt) const;

    const Model & model_;
    const uint64_t id_;  // unique: no other Vision has this id
    ProjectorFile file_;
    std::unique_ptr<mtmd_context, void (*)(mtmd_context *)> ctx_;
};

// text alone, for a model without a projector
Sequence tokenize_text(const Model & model, const std::string & prompt);

}  // namespace atp
