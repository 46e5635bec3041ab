#include "text/json_schema.h"

#include <algorithm>

#include "base/errors.h"
#include "json-schema-to-grammar.h"

namespace atp {

namespace {

constexpr size_t n_bytes_max = 256 * 1024;
constexpr int n_brackets_max = 200;  // one in another; the converter recurses for each

int depth_of(const std::string & json) {
    int depth = 0;
    int deepest = 0;
    bool in_text = false;
    for (size_t i = 0; i < json.size(); ++i) {
        if (in_text) {
            in_text = json[i] != '"';
            i += json[i] == '\\' ? 1 : 0;
        } else {
            in_text = json[i] == '"';
            depth += json[i] == '{' || json[i] == '[' ? 1 : json[i] == '}' || json[i] == ']' ? -1 : 0;
            deepest = std::max(deepest, depth);
        }
    }
    return deepest;
}

}  // namespace

std::string grammar_of_schema(const std::string & json) {
    if (json.size() > n_bytes_max || depth_of(json) > n_brackets_max) {
        throw AtpError("JSON schema: at most " + std::to_string(n_bytes_max) + " bytes and " +
                       std::to_string(n_brackets_max) + " brackets in each other are taken");
    }
    try {
        return json_schema_to_grammar(common_json::parse(json));
    } catch (const std::exception & e) {
        std::string reason = e.what();
        const std::string title = "JSON schema conversion failed:\n";
        reason = reason.compare(0, title.size(), title) == 0 ? reason.substr(title.size()) : reason;
        std::replace(reason.begin(), reason.end(), '\n', ';');
        throw AtpError("JSON schema: " + reason.substr(0, 500));
    }
}

}  // namespace atp
