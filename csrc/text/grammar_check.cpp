#include "text/grammar_check.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/errors.h"
#include "base/text.h"
#include "llama/llama_private.h"
#include "text/grammar_scan.h"

namespace atp {

namespace {

// A rule can begin with another rule, which can begin with a third rule, and so on. llama.cpp recurses once for each
// rule in such a row, and follows each way through the rules.
constexpr uint32_t depth_max = 1000;
constexpr uint64_t ways_max = 20000;          // of one rule
constexpr uint64_t weight_max = 2'000'000;    // sum of the lengths of one rule's ways
constexpr uint64_t all_ways_max = 5'000'000;  // of all rules, which llama.cpp walks to find left recursion

bool is_end(const llama_grammar_element & element) {
    return element.type == LLAMA_GRETYPE_END || element.type == LLAMA_GRETYPE_ALT;
}

// "… at REST OF THE TEXT" -> the line and the next characters alone
std::string where(const std::string & text, const std::string & reason) {
    for (size_t at = reason.find(" at "); at != std::string::npos; at = reason.find(" at ", at + 1)) {
        const size_t n_rest = reason.size() - at - 4;
        if (n_rest <= text.size() && text.compare(text.size() - n_rest, n_rest, reason, at + 4, n_rest) == 0) {
            const auto begin = text.end() - static_cast<ptrdiff_t>(n_rest);
            const auto line = 1 + std::count(text.begin(), begin, '\n');
            const std::string next(begin, std::find(begin, text.end(), '\n'));
            return ", line " + std::to_string(line) + ": " + reason.substr(0, at) +
                   (n_rest == 0 ? " at the end" : " at " + quoted(next));
        }
    }
    return ": " + reason.substr(0, 300);
}

void parse(const std::string & text, llama_grammar_parser & parser) {
    try {
        const char * pos = text.c_str() + skip_space(text, 0);
        while (*pos != '\0') {
            pos = parser.parse_rule(pos);
        }
    } catch (const std::exception & e) {
        throw AtpError("grammar" + where(text, e.what()));
    }
    const auto is_defined = [&](uint32_t id) { return id < parser.rules.size() && !parser.rules[id].empty(); };
    for (const auto & [name, id] : parser.symbol_ids) {
        if (!is_defined(id)) {
            throw AtpError("grammar: there is no rule " + quoted(name));
        }
    }
    if (parser.symbol_ids.find("root") == parser.symbol_ids.end()) {
        throw AtpError("grammar: there is no rule 'root', where it begins");
    }
}

// which rules can match the empty text
std::vector<bool> find_nullable(const llama_grammar_rules & rules) {
    struct Alternative {
        uint32_t rule;
        size_t n_missing;  // rules in it that may turn out not to be nullable
    };
    std::vector<Alternative> alternatives;                 // made of rules alone
    std::vector<std::vector<size_t>> users(rules.size());  // of each rule, the alternatives it stands in
    std::vector<bool> nullable(rules.size());
    std::vector<uint32_t> todo;
    const auto solve = [&](uint32_t rule) {
        if (!nullable[rule]) {
            nullable[rule] = true;
            todo.push_back(rule);
        }
    };
    for (uint32_t id = 0; id < rules.size(); ++id) {
        for (auto begin = rules[id].begin(); begin != rules[id].end();) {
            const auto end = std::find_if(begin, rules[id].end(), is_end);
            const auto is_rule = [](const llama_grammar_element & e) { return e.type == LLAMA_GRETYPE_RULE_REF; };
            if (begin == end) {
                solve(id);
            } else if (std::all_of(begin, end, is_rule)) {
                std::for_each(begin, end, [&](const auto & e) { users[e.value].push_back(alternatives.size()); });
                alternatives.push_back({id, static_cast<size_t>(end - begin)});
            }
            begin = end + 1;
        }
    }
    while (!todo.empty()) {
        const uint32_t rule = todo.back();
        todo.pop_back();
        for (const size_t user : users[rule]) {
            if (--alternatives[user].n_missing == 0) {
                solve(alternatives[user].rule);
            }
        }
    }
    return nullable;
}

// of each rule, the rules that can stand at its very front
std::vector<std::vector<uint32_t>> find_fronts(const llama_grammar_rules & rules) {
    const std::vector<bool> nullable = find_nullable(rules);
    std::vector<std::vector<uint32_t>> fronts(rules.size());
    for (size_t id = 0; id < rules.size(); ++id) {
        bool at_front = true;
        for (const llama_grammar_element & element : rules[id]) {
            if (is_end(element)) {
                at_front = true;
            } else if (at_front && element.type == LLAMA_GRETYPE_RULE_REF) {
                fronts[id].push_back(element.value);
                at_front = nullable[element.value];
            } else {
                at_front = false;
            }
        }
    }
    return fronts;
}

struct Cost {
    uint32_t depth = 0;
    uint64_t ways = 0, weight = 0;
    enum { unseen, open, closed } state = unseen;
};

std::string rule_name(const llama_grammar_parser & parser, uint32_t rule) {
    for (const auto & [name, id] : parser.symbol_ids) {
        if (id == rule) {
            return quoted(name.substr(0, name.find('_')));  // the parser adds what follows '_' to name a part of a rule
        }
    }
    return "";
}

Cost add_up(const std::vector<uint32_t> & fronts, const std::vector<Cost> & costs) {
    Cost cost{1, 1, 1, Cost::closed};
    for (const uint32_t front : fronts) {
        cost.depth = std::max(cost.depth, costs[front].depth + 1);
        cost.ways += costs[front].ways;
        cost.weight += costs[front].weight + costs[front].ways;
    }
    return cost;
}

void check_rules(const llama_grammar_parser & parser) {
    const auto fronts = find_fronts(parser.rules);
    std::vector<Cost> costs(fronts.size());
    uint64_t all_ways = 0;
    std::vector<std::pair<uint32_t, size_t>> path;  // rule, how many of its fronts are done
    for (uint32_t start = 0; start < fronts.size(); ++start) {
        if (costs[start].state == Cost::unseen) {
            path.emplace_back(start, 0);
            costs[start].state = Cost::open;
        }
        while (!path.empty()) {
            auto & [rule, n_done] = path.back();
            if (n_done < fronts[rule].size()) {
                const uint32_t front = fronts[rule][n_done++];
                if (costs[front].state == Cost::open) {
                    throw AtpError("grammar: rule " + rule_name(parser, front) +
                                   " begins with itself (left recursion), which is not supported");
                }
                if (costs[front].state == Cost::unseen) {
                    costs[front].state = Cost::open;
                    path.emplace_back(front, 0);
                }
                continue;
            }
            costs[rule] = add_up(fronts[rule], costs);
            all_ways += costs[rule].ways;
            if (costs[rule].depth > depth_max || costs[rule].ways > ways_max || costs[rule].weight > weight_max ||
                all_ways > all_ways_max) {
                throw AtpError("grammar: there are too many ways to begin rule " + rule_name(parser, rule) +
                               "; write it so that characters come sooner");
            }
            path.pop_back();
        }
    }
}

}  // namespace

void check_grammar(const std::string & text) {
    scan_grammar(text);
    llama_grammar_parser parser;
    parse(text, parser);
    check_rules(parser);
}

}  // namespace atp
