// The fingerprint of a loaded decoder: whether a sidecar was trained for these very weights.
//
// SHA-256 over the little-endian float32 bytes of output_norm, then attn_norm and ffn_norm of each layer. Norms stay
// F32 in every quantisation, and training the decoder changes them. Same as atp_cpp.sidecar.fingerprint in Python.
#pragma once

#include <string>

namespace atp {

class Model;

struct Fingerprint {
    std::string hex;      // 64 digits; "" if there is none
    std::string why_not;  // then: which norm is missing or not F32
};

Fingerprint fingerprint(const Model & model);

}  // namespace atp
