// What an mmproj file says that libmtmd does not tell: its kind, the size of its images, the end of a line of tiles.
//
// In:  the path of a projector that check_gguf and libmtmd have accepted.
// Out: a plain struct. Throws ModelError for a file that cannot be read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace atp {

struct ProjectorFile {
    std::string type;               // clip.projector_type
    int32_t image_size = 0;         // px, clip.vision.image_size
    std::vector<float> line_break;  // [n_embd], a token between two lines of one image (Pixtral, Mistral 3), or empty
    std::vector<float> newline;     // [n_embd], embedding behind each line of tiles; empty if there is none
    std::string why_no_newline;     // one that cannot be used, and why

    // whether images of exactly image_size are encoded as they are, in one piece
    bool has_fixed_size() const;
};

ProjectorFile read_projector_file(const std::string & path, int32_t n_embd);

}  // namespace atp
