#include "stage.h"

#include <algorithm>

#include "errors.h"
#include "llama_private.h"
#include "log_capture.h"
#include "model.h"
#include "score.h"

namespace atp {

struct Stage::Run {
    const StageInput & in;
    HiddenRows & hidden_in;
    HiddenRows hidden_out;
    ggml_backend_sched * sched;
    Interrupt & interrupt;
    StageOutput out;
    std::vector<int32_t> cell;    // per live row
    std::vector<float> received;  // per cell: attention summed over the scored rows
    int32_t n_scored = 0;
    const std::vector<float> * embd_for_merged = nullptr;
};

namespace {

// llama.cpp's CPU backend asks this between nodes, on the thread that called compute
bool stop_compute(void * interrupt) {
    return static_cast<Interrupt *>(interrupt)->poll();
}

struct ScopedAbort {
    ggml_backend_t cpu;
    ScopedAbort(ggml_backend_t backend, Interrupt & interrupt) : cpu(backend) {
        ggml_backend_cpu_set_abort_callback(cpu, stop_compute, &interrupt);
    }
    ~ScopedAbort() { ggml_backend_cpu_set_abort_callback(cpu, nullptr, nullptr); }
};

int32_t n_outputs_of(const llama_ubatch & ubatch) {
    int32_t n = 0;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        n += ubatch.output[i] != 0;
    }
    return n;
}

}  // namespace

Stage::Stage(const Model & model, StageRange range)
    : model_(model), range_(range), cache_(model, range), batcher_(model), graph_(model, range) {
    // look at the graph once: is it legal, what does it read, where would a score come from
    constexpr int32_t n_probe = 2;
    cache_.reserve(n_probe, n_probe);
    const ggml_backend_sched_ptr sched(model.new_sched(model.max_nodes()));
    const llama_ubatch ubatch = batcher_.dummy(n_probe);
    const auto memory = cache_.memory()->init_full();
    GraphRequest request;
    request.ubatch = &ubatch;
    request.memory = memory.get();
    request.sched = sched.get();
    request.n_outputs = 1;
    graph_.build(request);
    reads_prompt_ = graph_.reads_prompt();
    score_layer_ = atp::score_layer(graph_);
    cache_.release();
}

std::vector<Segment> Stage::plan_segments(const StageInput & in) const {
    std::vector<Segment> parts = segments(*in.seq, *in.live);
    const bool all_causal = std::all_of(parts.begin(), parts.end(), [](const Segment & s) { return s.causal; });
    if (in.merge_kinds && !reads_prompt_ && all_causal && range_.il_first > 0) {
        return {{0, in.live->size(), true, true}};
    }
    return parts;
}

StageOutput Stage::prefill(const StageInput & in, HiddenRows & hidden, Interrupt & interrupt) {
    // A scheduler of our own: ggml's allocator replays the last plan for any graph with as many nodes of the same
    // sizes, and two stages can look alike to it while their tensors live differently. It goes when the stage is done,
    // so that only one stage's compute buffer exists at a time
    const ggml_backend_sched_ptr sched(model_.new_sched(model_.max_nodes()));
    Run run{in, hidden, {}, sched.get(), interrupt, {}, {}, {}, 0, nullptr};
    run.cell.assign(in.live->size(), -1);
    run.hidden_out.start(in.live->size());
    std::vector<float> no_embd;
    const std::vector<Segment> parts = plan_segments(in);
    if (parts.size() == 1 && parts[0].image && segments(*in.seq, *in.live).size() > 1) {
        no_embd.assign(model_.n_embd_inp(), 0.0f);  // stands in for content that this stage never reads
        run.embd_for_merged = &no_embd;
    }
    const ScopedAbort abort(model_.cpu_backend(), interrupt);
    for (const Segment & segment : parts) {
        run_segment(run, segment);
    }
    if (in.score_from >= 0) {
        finish_score(run);
    }
    hidden = std::move(run.hidden_out);
    return std::move(run.out);
}

void Stage::run_segment(Run & run, const Segment & segment) {
    const Sequence & seq = *run.in.seq;
    std::vector<BatchRow> rows;
    for (size_t i = segment.begin; i < segment.end; ++i) {
        BatchRow r;
        r.row = &seq.rows[(*run.in.live)[i]];
        if (run.embd_for_merged) {
            r.embd = run.embd_for_merged->data();
        } else if (segment.image) {
            r.embd = &seq.embd[static_cast<size_t>(r.row->index) * seq.n_embd_inp];
        }
        r.seq_id = run.in.seq_id;
        r.output = graph_.is_last() && (run.in.all_logits || i + 1 == run.in.live->size());
        rows.push_back(r);
    }
    // rows that see each other in both directions must be computed together
    const int32_t n_ubatch = segment.causal ? model_.params().n_ubatch : static_cast<int32_t>(rows.size());
    const auto placed = batcher_.place(*cache_.memory(), rows, n_ubatch);
    do {
        run.interrupt.check();
        if (!placed->apply()) {
            throw StageError("llama.cpp could not apply the batch to the KV cache: " + log_capture::last_error());
        }
        run_ubatch(run, segment, placed->get_ubatch(), *placed);
    } while (placed->next());
}

void Stage::run_ubatch(Run & run, const Segment & segment, const llama_ubatch & ubatch,
                       const llama_memory_context_i & memory) {
    GraphRequest request;
    request.ubatch = &ubatch;
    request.memory = &memory;
    request.sched = run.sched;
    request.n_outputs = n_outputs_of(ubatch);
    request.causal = segment.causal;
    ggml_backend_sched_reset(run.sched);
    graph_.build(request);
    compute(run, segment, ubatch);
}

void Stage::compute(Run & run, const Segment & segment, const llama_ubatch & ubatch) {
    const size_t max_nodes = model_.max_nodes();
    ggml_init_params ip = {};
    ip.mem_size = ggml_graph_overhead_custom(max_nodes, false) + 64 * ggml_tensor_overhead();
    ip.no_alloc = true;
    const ggml_context_ptr ctx(ggml_init(ip));
    ggml_cgraph * graph = assemble(ctx.get(), max_nodes, {&graph_});

    // which rows of this ubatch are to be scored: a tail, because live rows come in order
    const int32_t first = static_cast<int32_t>(segment.begin) + ubatch.data->batch_idxs[0];
    const int32_t n = static_cast<int32_t>(ubatch.n_tokens);
    const int32_t tail = run.in.score_from < 0 ? n : std::clamp(run.in.score_from - first, 0, n);
    ScoreTap tap;
    if (tail < n) {
        tap = add_score(ctx.get(), graph, graph_, tail, n);
    }
    if (!ggml_backend_sched_alloc_graph(run.sched, graph)) {
        throw StageError("no memory for the compute buffer of " + std::to_string(n) + " rows; use a smaller n_ubatch");
    }
    graph_.result().set_inputs(&ubatch);
    // now, not after compute: the allocator reuses an input's memory once its last reader has run
    if (run.in.score_from >= 0) {
        const std::vector<int32_t> cells = read_cells(graph_);
        for (int32_t i = 0; i < n; ++i) {
            run.cell[segment.begin + ubatch.data->batch_idxs[i]] = cells[i];
        }
    }
    if (graph_.input()) {
        run.hidden_in.write(graph_.input(), ubatch, segment.begin);
    }
    const ggml_status status = ggml_backend_sched_graph_compute(run.sched, graph);
    run.interrupt.check();
    if (status != GGML_STATUS_SUCCESS) {
        throw StageError("computing layers " + std::to_string(range_.il_first) + " to " +
                         std::to_string(range_.il_last - 1) + " failed: " + log_capture::last_error());
    }
    if (!graph_.is_last()) {
        run.hidden_out.read(graph_.output(), ubatch, segment.begin);
    } else if (const size_t n_logits = ggml_nelements(graph_.output())) {
        const size_t old = run.out.logits.size();
        run.out.logits.resize(old + n_logits);
        ggml_backend_tensor_get(graph_.output(), &run.out.logits[old], 0, n_logits * sizeof(float));
    }
    if (tap.sum) {
        std::vector<float> sum(ggml_nelements(tap.sum));
        ggml_backend_tensor_get(tap.sum, sum.data(), 0, ggml_nbytes(tap.sum));
        run.received.resize(std::max(run.received.size(), sum.size()), 0.0f);
        std::transform(sum.begin(), sum.end(), run.received.begin(), run.received.begin(), std::plus<float>());
        run.n_scored += tap.n_rows;
    }
}

void Stage::finish_score(Run & run) const {
    run.out.score.reserve(run.cell.size());
    for (const int32_t cell : run.cell) {
        run.out.score.push_back(run.received[cell] / static_cast<float>(run.n_scored));
    }
}

}  // namespace atp
