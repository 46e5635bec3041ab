// Image -> image tokens: libmtmd encodes and projects, we lay text and image tokens out as one Sequence.
//
// In:  a prompt with one media marker per image, RGB images (uint8 [h][w][3]).
// Out: a Sequence whose image rows carry projected embeddings [n_image_tokens][n_embd_inp] and a patch grid each.
// Owns the projector. Knows no stages. Throws ModelError (projector file), ImageError (an image).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sequence.h"

struct mtmd_context;
struct mtmd_input_chunk;

namespace atp {

class Model;

struct RgbImage {
    const uint8_t * data = nullptr;  // [height][width][3]
    int32_t width = 0;
    int32_t height = 0;
};

class Vision {
  public:
    Vision(const Model & model, const std::string & mmproj_path);
    ~Vision();

    // t_encode: milliseconds spent in the vision encoder
    Sequence encode(const std::string & prompt, const std::vector<RgbImage> & images, double & t_encode) const;

    static std::string media_marker();

  private:
    void add_image_chunk(Sequence & seq, const mtmd_input_chunk * chunk, double & t_encode) const;

    const Model & model_;
    std::unique_ptr<mtmd_context, void (*)(mtmd_context *)> ctx_;
};

// text alone, for a model without a projector
Sequence tokenize_text(const Model & model, const std::string & prompt);

}  // namespace atp
