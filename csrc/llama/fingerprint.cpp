#include "llama/fingerprint.h"

#include <vector>

#include "hash/hash.h"
#include "llama/llama_private.h"
#include "llama/model.h"

namespace atp {

Fingerprint fingerprint(const Model & model) {
    std::vector<std::string> names = {"output_norm.weight"};
    for (int32_t il = 0; il < model.n_layer(); ++il) {
        const std::string prefix = "blk." + std::to_string(il);
        names.push_back(prefix + ".attn_norm.weight");
        names.push_back(prefix + ".ffn_norm.weight");
    }
    std::vector<char> bytes;
    for (const std::string & name : names) {
        const ggml_tensor * norm = model.llama()->get_tensor(name.c_str());
        if (!norm) {
            return {"", name + " is missing"};
        }
        if (norm->type != GGML_TYPE_F32) {
            return {"", name + " is " + ggml_type_name(norm->type)};
        }
        const size_t begin = bytes.size();
        bytes.resize(begin + ggml_nbytes(norm));
        ggml_backend_tensor_get(norm, bytes.data() + begin, 0, ggml_nbytes(norm));
    }
    return {hash_sha256_hex(bytes.data(), bytes.size()), ""};
}

}  // namespace atp
