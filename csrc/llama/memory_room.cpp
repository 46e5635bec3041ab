#include "llama/memory_room.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#ifndef _WIN32
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#endif
#ifdef __linux__
#include <sys/sysinfo.h>

#include <fstream>
#endif

#include "base/errors.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "gguf.h"
#include "llama.h"
#include "llama/gguf_check.h"

namespace atp {

namespace {

namespace fs = std::filesystem;

constexpr uint64_t mib = 1 << 20;

// for the many small things that are not counted
constexpr uint64_t slack = 16 * mib;

// What a load and one caption take beside files, threads and schedulers: graphs, the encoder's activations, KV cache,
// heap. Measured: the demo (files 15 MB, 2 threads, one arena) takes 419 MB of address space, schedulers 326 of them
constexpr uint64_t base = 48 * mib;

// nodes of the graphs that map attention for scores, see stages/score.h
constexpr size_t map_nodes = 4096;

std::string megabytes(uint64_t n) {
    return std::to_string((n + mib - 1) / mib) + " MiB";
}

// names may be as long as they like, a message may not
std::string short_name(const std::string & path) {
    constexpr size_t most = 80;
    const std::string name = fs::u8path(path).filename().u8string();
    return name.size() <= most ? name : "..." + name.substr(name.size() - most);
}

// the CPU's kernels want these in an order of their own, so they are held once more beside the mapped file
// (ggml-cpu/repack.cpp, ggml-cpu/amx)
bool is_repacked(ggml_type type) {
    const bool arm = ggml_cpu_has_neon() && ggml_cpu_has_matmul_int8();
    const bool amx = ggml_cpu_has_amx_int8();
    switch (type) {
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_K:
            return ggml_cpu_has_avx2() || ggml_cpu_has_neon() || amx;
        case GGML_TYPE_IQ4_NL:
        case GGML_TYPE_MXFP4:
            return ggml_cpu_has_avx2() || ggml_cpu_has_neon();
        case GGML_TYPE_Q2_K:
            return ggml_cpu_has_avx512();
        case GGML_TYPE_Q5_K:
        case GGML_TYPE_Q6_K:
        case GGML_TYPE_Q8_0:
            return arm || amx;
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_IQ4_XS:
            return amx;
        default:
            return false;
    }
}

struct Weights {
    uint64_t file = 0;
    uint64_t repacked = 0;
    size_t n_tensors = 0;
};

// all files of a model that comes in several
std::vector<std::string> parts(const std::string & path, const gguf_context * gguf) {
    const int64_t key = gguf_find_key(gguf, "split.count");
    const int n = key >= 0 && gguf_get_kv_type(gguf, key) == GGUF_TYPE_UINT16 ? gguf_get_val_u16(gguf, key) : 1;
    std::vector<char> prefix(path.size() + 1);
    if (n < 2 || llama_split_prefix(prefix.data(), prefix.size(), path.c_str(), 0, n) <= 0) {
        return {path};
    }
    std::vector<std::string> paths;
    for (int i = 0; i < n; ++i) {
        std::vector<char> part(path.size() + 32);
        llama_split_path(part.data(), part.size(), prefix.data(), i, n);
        paths.emplace_back(part.data());
    }
    return paths;
}

gguf_context_ptr header(const std::string & path) {
    return gguf_context_ptr(gguf_init_from_file(path.c_str(), {/*.no_alloc =*/true, /*.ctx =*/nullptr}));
}

Weights read_weights(const std::string & path, bool on_cpu) {
    Weights w;
    const gguf_context_ptr first = header(path);
    for (const std::string & part : first ? parts(path, first.get()) : std::vector<std::string>()) {
        std::error_code ec;
        const uint64_t n_bytes = fs::file_size(fs::u8path(part), ec);
        w.file += ec ? 0 : n_bytes;
        const gguf_context_ptr gguf = header(part);
        const int64_t n = gguf ? gguf_get_n_tensors(gguf.get()) : 0;
        w.n_tensors += static_cast<size_t>(n);
        for (int64_t i = 0; on_cpu && i < n; ++i) {
            const bool looked_up = std::string(gguf_get_tensor_name(gguf.get(), i)) == "token_embd.weight";
            if (!looked_up && is_repacked(gguf_get_tensor_type(gguf.get(), i))) {
                w.repacked += gguf_get_tensor_size(gguf.get(), i);
            }
        }
    }
    return w;
}

// with swap; 0 where it cannot be told
uint64_t machine_memory() {
#if defined(__linux__)
    struct sysinfo info = {};
    return sysinfo(&info) == 0 ? (static_cast<uint64_t>(info.totalram) + info.totalswap) * info.mem_unit : 0;
#else
    return 0;
#endif
}

uint64_t stack_bytes() {
#ifdef _WIN32
    return mib;
#else
    rlimit limit = {};
    const bool known = getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
    return known ? limit.rlim_cur : 2 * mib;
#endif
}

// whether the file is a whole GGUF; whoever loads it says what it is instead
bool is_whole(const std::string & path) {
    try {
        check_gguf(path);
        return true;
    } catch (const ModelError &) {
        return false;
    }
}

// a file so small that no look into it is needed
bool fits_easily(const LoadNeeds & needs, uint64_t machine) {
    std::error_code ec;
    const uint64_t n_bytes = fs::file_size(fs::u8path(needs.model), ec);
    const bool one_file = needs.model.find("-of-") == std::string::npos;
    const uint64_t projector = ec || needs.projector.empty() ? 0 : fs::file_size(fs::u8path(needs.projector), ec);
    return !ec && one_file && n_bytes + projector + base < machine;
}

}  // namespace

uint64_t sched_bytes(size_t n_nodes) {
    constexpr size_t inputs = 30 * 2;  // GGML_SCHED_MAX_SPLIT_INPUTS, and their copies; ggml-backend.cpp
    const uint64_t ids = 4 * (1 + inputs) * sizeof(int);
    return n_nodes * (inputs * sizeof(ggml_tensor) + ids) + ggml_graph_overhead_custom(n_nodes, false);
}

std::optional<uint64_t> address_space_left() {
#ifdef __linux__
    rlimit limit = {};
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
        return std::nullopt;
    }
    uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const uint64_t taken = pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    return limit.rlim_cur > taken ? limit.rlim_cur - taken : 0;
#else
    return std::nullopt;
#endif
}

void check_room(uint64_t n_bytes, const std::string & what) {
#ifndef _WIN32
    // not malloc: a block that is freed changes how it takes the next ones
    const size_t wanted = n_bytes + slack;
    void * block = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block != MAP_FAILED) {
        munmap(block, wanted);
        return;
    }
    const auto left = address_space_left();
    throw NoMemory("no memory for " + what + ": " + megabytes(wanted) + " are needed, and " +
                   (left ? "this process may take " + megabytes(*left) +
                               " more (ulimit -v); raise the limit, set "
                               "MALLOC_ARENA_MAX=1 (else glibc takes 64 MiB of it for each thread), or "
                         : std::string("the system gives no more; ")) +
                   "use a smaller model, n_ubatch or batch, or fewer threads");
#else
    (void) n_bytes;
    (void) what;
#endif
}

void check_fits(const LoadNeeds & needs) {
    const auto left = address_space_left();
    const uint64_t machine = machine_memory();
    const bool no_limit = !left && (machine == 0 || fits_easily(needs, machine));
    if (no_limit || !is_whole(needs.model)) {
        return;
    }
    const Weights model = read_weights(needs.model, needs.on_cpu);
    const bool has_projector = !needs.projector.empty() && is_whole(needs.projector);
    const uint64_t projector = has_projector ? fs::file_size(fs::u8path(needs.projector)) : 0;
    const uint64_t not_mapped = model.repacked + projector + base;
    if (machine != 0 && not_mapped > machine) {
        throw ModelError(short_name(needs.model) + " does not fit: it needs at least " + megabytes(not_mapped) +
                         " of memory (" + megabytes(model.repacked) + " of weights in the CPU's own order, projector " +
                         megabytes(projector) + "), and this machine has " + megabytes(machine) +
                         " with swap; use a smaller model, or one of type F16 or Q8_0, whose weights stay in the file");
    }
    const size_t nodes = std::max<size_t>(1024, 8 * model.n_tensors);  // llama_context::graph_max_nodes
    const uint64_t schedulers =
        sched_bytes(nodes + map_nodes) + sched_bytes(2 * nodes) + (has_projector ? sched_bytes(encoder_nodes) : 0);
    const uint64_t pools = has_projector ? 2 : 1;
    const uint64_t stacks = pools * static_cast<uint64_t>(std::max(needs.n_threads - 1, 0)) * stack_bytes();
    const uint64_t all = model.file + not_mapped + schedulers + stacks;
    if (left && all > *left) {
        throw ModelError("too little memory for " + short_name(needs.model) + ": it needs about " + megabytes(all) +
                         " of address space (weights " + megabytes(model.file + model.repacked) + ", projector " +
                         megabytes(projector) + ", threads " + megabytes(stacks) + ", graphs and buffers " +
                         megabytes(schedulers + base) + "), and this process may take " + megabytes(*left) +
                         " more; raise its limit (ulimit -v), or use a smaller model or fewer threads");
    }
}

}  // namespace atp
