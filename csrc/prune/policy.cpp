#include "prune/policy.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/errors.h"

namespace atp {

namespace {

uint64_t splitmix64(uint64_t x) {
    x += 0x9E3779B97F4A7C15ULL;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

// for each image: as many live tokens as its quota, the first under `before` (a strict order on positions in the
// arrays)
template <typename Before>
KeepList keep_first(const PolicyInput & in, Before before) {
    KeepList out;
    std::vector<size_t> order;
    for (size_t im = 0; im < in.images.size(); ++im) {
        order.clear();
        for (size_t i = 0; i < in.index.size(); ++i) {
            if (in.image[i] == static_cast<int32_t>(im)) {
                order.push_back(i);
            }
        }
        const size_t n = std::min<size_t>(order.size(), quota(in.keep, in.images[im].n_tokens));
        std::partial_sort(order.begin(), order.begin() + n, order.end(), before);
        for (size_t k = 0; k < n; ++k) {
            out.push_back(in.index[order[k]]);
        }
    }
    std::sort(out.begin(), out.end());
    return out;
}

// an order by a key; ties go to the lower position
template <typename Key>
KeepList keep_smallest(const PolicyInput & in, Key key) {
    return keep_first(in, [&](size_t a, size_t b) {
        const auto ka = key(a);
        const auto kb = key(b);
        return ka != kb ? ka < kb : a < b;
    });
}

const std::vector<Policy> & policies() {
    static const std::vector<Policy> all = {
        {"none", ScoreKind::none, keep_all, keep_all},
        {"random", ScoreKind::none, keep_random, keep_random},
        {"grid", ScoreKind::none, keep_grid, keep_grid},
        {"fastv", ScoreKind::last_row, keep_fastv, keep_grid},
    };
    return all;
}

}  // namespace

int32_t quota(double keep, int32_t n_tokens) {
    return std::max<int32_t>(1, static_cast<int32_t>(std::lround(keep * n_tokens)));
}

uint32_t bayer_rank(uint32_t y, uint32_t x) {
    uint32_t rank = 0;
    for (int bit = 0; bit < 16; ++bit) {
        const uint32_t yb = (y >> bit) & 1U;
        const uint32_t xb = (x >> bit) & 1U;
        rank = (rank << 2) | ((xb ^ yb) << 1) | yb;
    }
    return rank;
}

KeepList keep_all(const PolicyInput & in) {
    return in.index;
}

KeepList keep_random(const PolicyInput & in) {
    const uint64_t base = splitmix64(in.seed);
    return keep_smallest(in, [&](size_t i) { return splitmix64(base ^ static_cast<uint64_t>(in.index[i])); });
}

KeepList keep_grid(const PolicyInput & in) {
    return keep_smallest(in, [&](size_t i) { return bayer_rank(in.y[i], in.x[i]); });
}

KeepList keep_fastv(const PolicyInput & in) {
    return keep_smallest(in, [&](size_t i) { return -in.score[i]; });
}

const Policy & find_policy(const std::string & name) {
    for (const auto & policy : policies()) {
        if (policy.name == name) {
            return policy;
        }
    }
    std::string known;
    for (const auto & n : policy_names()) {
        known += known.empty() ? n : ", " + n;
    }
    throw PlanError("unknown policy '" + name + "': expected one of " + known);
}

std::vector<std::string> policy_names() {
    std::vector<std::string> names;
    for (const auto & policy : policies()) {
        names.push_back(policy.name);
    }
    return names;
}

void check_keep_list(const PolicyInput & in, const KeepList & kept, const std::string & policy_name) {
    const auto fail = [&](const std::string & what) {
        throw PlanError("policy '" + policy_name + "' returned an illegal keep list: " + what);
    };
    std::vector<char> survives(in.images.size(), 0);
    for (size_t k = 0; k < kept.size(); ++k) {
        if (k > 0 && kept[k] <= kept[k - 1]) {
            fail("indices must be ascending without repeats, got " + std::to_string(kept[k - 1]) + " before " +
                 std::to_string(kept[k]));
        }
        const auto it = std::lower_bound(in.index.begin(), in.index.end(), kept[k]);
        if (it == in.index.end() || *it != kept[k]) {
            fail("image token " + std::to_string(kept[k]) + " is not alive at this cut");
        }
        survives[in.image[it - in.index.begin()]] = 1;
    }
    for (size_t im = 0; im < survives.size(); ++im) {
        if (!survives[im] && in.images[im].n_tokens > 0) {
            fail("image " + std::to_string(im) + " would lose all its tokens; at least one must survive");
        }
    }
}

}  // namespace atp
