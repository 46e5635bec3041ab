#include "sidecar/sidecar.h"

#include <algorithm>
#include <tuple>

#include "base/errors.h"
#include "base/text.h"
#include "llama/fingerprint.h"
#include "llama/model.h"
#include "sidecar/sidecar_file.h"

namespace atp {

namespace {

constexpr uint32_t schema_version = 1;
constexpr int32_t max_layers = 512;  // llama.cpp's limit
constexpr int32_t max_list = 64;     // cuts, strides
constexpr int32_t max_side = 4096;   // rows or columns of a grid, a stride
constexpr int32_t max_units = 4096;  // n_bins, n_hidden
constexpr int32_t max_width = 1 << 20;
constexpr size_t max_name = 256;   // bytes
constexpr size_t max_note = 4096;  // bytes
constexpr size_t n_tensors_of_module = 6;

std::string atp_key(const char * name) {
    return std::string("adapter.atp.") + name;
}

void check_kind(const SidecarFile & file) {
    const std::string type = file.has("general.type") ? file.text("general.type", 0, max_name) : "";
    if (type != "adapter") {
        file.fail("not a sidecar: general.type must be 'adapter', got " + quoted(type) +
                  ". A model goes with -m, a projector with --mmproj");
    }
    const std::string adapter = file.text("adapter.type", 0, max_name);
    if (adapter != "atp") {
        file.fail("adapter.type must be 'atp', got " + quoted(adapter) +
                  ": another kind of adapter; merge it into the model");
    }
    const auto version = static_cast<uint32_t>(file.whole(atp_key("version"), 0, INT32_MAX));
    if (version != schema_version) {
        file.fail("adapter.atp.version is " + std::to_string(version) + ", this program reads " +
                  std::to_string(schema_version) + "; " +
                  (version > schema_version ? "install a newer atp_cpp" : "convert the sidecar again"));
    }
}

// each number is in 1 .. most and above the number before
std::vector<int32_t> ascending(const SidecarFile & file, const char * name, int32_t most) {
    const std::string key = atp_key(name);
    const std::vector<int32_t> values = file.wholes(key, 1, max_list);
    int32_t before = 0;
    for (const int32_t value : values) {
        if (value < 1 || value > most) {
            file.fail(key + " must be in 1 to " + std::to_string(most) + ", got " + std::to_string(value));
        }
        if (value <= before) {
            file.fail(key + " must be ascending, got " + std::to_string(value) + " after " + std::to_string(before));
        }
        before = value;
    }
    return values;
}

void read_base(const SidecarFile & file, AtpWeights & w) {
    w.arch = file.text("general.architecture", 1, max_name);
    w.name = file.text("general.name", 1, max_name);
    (void) file.whole("general.base_model.count", 1, 1);
    w.base_name = file.text("general.base_model.0.name", 1, max_name);
    w.n_layer = file.whole(atp_key("base.n_layer"), 2, max_layers);
    w.n_embd = file.whole(atp_key("base.n_embd"), 1, max_width);
    w.n_head = file.whole(atp_key("base.n_head"), 1, max_width);
    w.fingerprint = file.text(atp_key("base.fingerprint"), 0, max_name);
    if (w.fingerprint.size() != 64 || w.fingerprint.find_first_not_of("0123456789abcdef") != std::string::npos) {
        file.fail("adapter.atp.base.fingerprint must be 64 hex digits, got " + quoted(w.fingerprint));
    }
}

void read_method(const SidecarFile & file, AtpWeights & w) {
    w.score_norm = static_cast<AtpWeights::ScoreNorm>(file.choice(atp_key("score_norm"), score_norm_names));
    w.divisor = static_cast<AtpWeights::Divisor>(file.choice(atp_key("divisor"), divisor_names));
    w.score = static_cast<AtpWeights::Score>(file.choice(atp_key("score"), score_names));
    w.rule = static_cast<AtpWeights::Rule>(file.choice(atp_key("rule"), rule_names));
    w.activation = static_cast<AtpWeights::Activation>(file.choice(atp_key("activation"), activation_names));
    w.strides = ascending(file, "strides", max_side);
    w.lambda_sample = file.real(atp_key("lambda_sample"));
    if (w.lambda_sample <= 0) {
        file.fail("adapter.atp.lambda_sample must be above 0, got " + std::to_string(w.lambda_sample));
    }
    w.n_bins = file.whole(atp_key("n_bins"), 2, max_units);
    w.n_hidden = file.whole(atp_key("n_hidden"), 1, max_units);
}

void read_training(const SidecarFile & file, size_t n_cuts, AtpWeights & w) {
    w.mode = mode_names[file.choice(atp_key("training.mode"), mode_names)];
    w.data = file.text(atp_key("training.data"), 0, max_note);
    w.budget = file.real(atp_key("training.budget"));
    if (w.budget <= 0 || w.budget > 1) {
        file.fail("adapter.atp.training.budget must be in (0, 1], got " + std::to_string(w.budget));
    }
    w.kept = file.reals(atp_key("training.kept"), n_cuts);
    double before = 1;
    for (const double share : w.kept) {
        if (share <= 0 || share > before) {
            file.fail("adapter.atp.training.kept must be in (0, 1] and never rise, got " + std::to_string(share) +
                      " after " + std::to_string(before));
        }
        before = share;
    }
    const std::vector<int32_t> grid = file.wholes(atp_key("grid"), 2, 2);
    for (const int32_t side : grid) {
        if (side < 1 || side > max_side) {
            file.fail("adapter.atp.grid must be two numbers in 1 to " + std::to_string(max_side) + ", got " +
                      std::to_string(side));
        }
    }
    w.grid_rows = grid[0];
    w.grid_cols = grid[1];
}

AtpModule read_module(const SidecarFile & file, int32_t after, int32_t n_bins, int32_t n_hidden) {
    const std::string prefix = "blk." + std::to_string(after - 1) + ".atp_";
    AtpModule m;
    m.after = after;
    m.proj_w = file.tensor(prefix + "proj.weight", 2 * n_bins, n_hidden);
    m.proj_b = file.tensor(prefix + "proj.bias", n_hidden, 1);
    m.theta_r_w = file.tensor(prefix + "theta_r.weight", n_hidden, 1);
    m.theta_r_b = file.tensor(prefix + "theta_r.bias", 1, 1)[0];
    m.theta_s_w = file.tensor(prefix + "theta_s.weight", n_hidden, 1);
    m.theta_s_b = file.tensor(prefix + "theta_s.bias", 1, 1)[0];
    return m;
}

// every module has been read, so any further tensor in the file belongs to no cut
void check_no_others(const SidecarFile & file, const AtpWeights & w) {
    const std::vector<std::string> names = file.tensor_names();
    if (names.size() == n_tensors_of_module * w.modules.size()) {
        return;
    }
    for (const std::string & name : names) {
        const bool known = std::any_of(w.modules.begin(), w.modules.end(), [&](const AtpModule & m) {
            const std::string prefix = "blk." + std::to_string(m.after - 1) + ".atp_";
            return name == prefix + "proj.weight" || name == prefix + "proj.bias" ||
                   name == prefix + "theta_r.weight" || name == prefix + "theta_r.bias" ||
                   name == prefix + "theta_s.weight" || name == prefix + "theta_s.bias";
        });
        if (!known) {
            file.fail("tensor " + quoted(name) + " belongs to no cut; convert the sidecar again");
        }
    }
}

}  // namespace

AtpWeights load_sidecar(const std::string & path) {
    const SidecarFile file(path);
    check_kind(file);
    AtpWeights w;
    w.path = path;
    read_base(file, w);
    const std::vector<int32_t> cuts = ascending(file, "cuts", w.n_layer - 1);
    read_method(file, w);
    read_training(file, cuts.size(), w);
    for (const int32_t after : cuts) {
        w.modules.push_back(read_module(file, after, w.n_bins, w.n_hidden));
    }
    check_no_others(file, w);
    return w;
}

std::string why_no_pair(const AtpWeights & w, const Model & model) {
    const auto differs = [](const char * what, const std::string & wanted, const std::string & got) {
        return std::string("the sidecar is for ") + what + " " + wanted + ", the model has " + got +
               "; use the sidecar of this model";
    };
    if (w.arch != model.arch()) {
        return differs("the architecture", quoted(w.arch), quoted(model.arch()));
    }
    const std::tuple<const char *, int32_t, int32_t> numbers[] = {
        {"a depth of", w.n_layer, model.n_layer()},
        {"a width of", w.n_embd, model.n_embd()},
        {"a number of attention heads of", w.n_head, model.n_head()},
    };
    for (const auto & [what, wanted, got] : numbers) {
        if (wanted != got) {
            return differs(what, std::to_string(wanted), std::to_string(got));
        }
    }
    const Fingerprint print = fingerprint(model);
    if (print.hex.empty()) {
        return "the model cannot be told from others of its shape (" + print.why_not +
               "); ATP needs these norms in f32";
    }
    return w.fingerprint == print.hex ? "" : differs("the fingerprint", w.fingerprint, print.hex);
}

void check_pair(const AtpWeights & w, const Model & model) {
    const std::string why_not = why_no_pair(w, model);
    if (!why_not.empty()) {
        throw ModelError(w.path + " (trained for " + quoted(w.base_name) + ") does not fit " + model.params().path +
                         " (" + quoted(model.meta("general.name")) + "): " + why_not);
    }
}

}  // namespace atp
