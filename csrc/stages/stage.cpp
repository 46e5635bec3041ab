#include "stages/stage.h"

#include <algorithm>
#include <array>

#include "base/errors.h"
#include "llama/abort_guard.h"
#include "llama/llama_private.h"
#include "llama/log_capture.h"
#include "llama/memory_room.h"
#include "llama/model.h"
#include "stages/score.h"
#include "stages/score_sum.h"

namespace atp {

struct Stage::Run {
    const StageInput & in;
    HiddenRows & hidden_in;
    HiddenRows hidden_out;
    ggml_backend_sched * sched;
    Interrupt & interrupt;
    ScoreSum score;
    StageOutput out;
    bool merged = false;         // rows of all kinds share ubatches, because the stage reads no content of the prompt
    std::vector<float> no_embd;  // embedding of merged M-RoPE rows: only embeddings keep all sections of pos
};

namespace {

// some architectures cannot build an output head of no rows: a ubatch without outputs computes the logits of its last
// row, and nobody reads them
void want_one_output(const llama_ubatch & ubatch) {
    int8_t * end = ubatch.output + ubatch.n_tokens;
    if (std::find_if(ubatch.output, end, [](int8_t wanted) { return wanted != 0; }) == end) {
        end[-1] = 1;
    }
}

using Shape = std::array<int64_t, GGML_MAX_DIMS>;

constexpr int32_t n_probe = 3;

Shape shape_of(const ggml_tensor * t) {
    Shape shape = {1, 1, 1, 1};
    if (t) {
        std::copy(t->ne, t->ne + GGML_MAX_DIMS, shape.begin());
    }
    return shape;
}

// the dimension that differs between two graphs of one stage, built for different numbers of rows
int growing_dim(const Shape & few, const Shape & more) {
    const auto at = std::mismatch(few.begin(), few.end(), more.begin());
    return at.first == few.end() ? 1 : static_cast<int>(at.first - few.begin());
}

}  // namespace

Stage::Stage(const Model & model, StageRange range)
    : model_(model), range_(range), cache_(model, range), side_cache_(model, range), batcher_(model),
      graph_(model, range) {
    // inspect the graphs once: whether they are legal, whether they read the prompt, in which dimension rows lie, and
    // which layer a score would come from
    cache_.reserve(n_probe, n_probe, 1);
    const ggml_backend_sched_ptr sched = model.new_sched(model.max_nodes());
    const auto build = [&](int32_t n_tokens, bool embeddings) {
        ggml_backend_sched_reset(sched.get());
        const llama_ubatch ubatch = batcher_.dummy(n_tokens, embeddings);
        const auto memory = cache_.memory()->init_full();
        graph_.build(probe_request(ubatch, *memory, sched.get(), cache_.has_guests()));
    };
    build(n_probe - 1, false);
    const Shape in = shape_of(graph_.input());
    const Shape out = shape_of(graph_.is_last() ? nullptr : graph_.output());
    build(n_probe, false);
    dim_in_ = growing_dim(in, shape_of(graph_.input()));
    dim_out_ = growing_dim(out, shape_of(graph_.is_last() ? nullptr : graph_.output()));
    why_no_score_ = atp::why_no_score(graph_);
    const std::string of_tokens = graph_.signature();
    reads_prompt_ = graph_.reads_prompt();
    if (range.il_first > 0 && !reads_prompt_) {
        build(n_probe, true);
        reads_prompt_ = graph_.reads_prompt() || graph_.signature() != of_tokens;
    }
    cell_bytes_ = cache_.cell_bytes();
    cache_.release();
}

StageOutput Stage::prefill(const StageInput & in, HiddenRows & hidden, ggml_backend_sched * sched,
                           Interrupt & interrupt) {
    Run run{in, hidden, {}, sched, interrupt, {in.score, *in.seq, *in.live}, {}, false, {}};
    run.hidden_out.start(in.live->size());
    std::vector<Segment> parts = segments(*in.seq, *in.live);
    const bool all_causal = std::all_of(parts.begin(), parts.end(), [](const Segment & p) { return p.causal; });
    run.merged = in.merge_kinds && !reads_prompt_ && all_causal && range_.il_first > 0;
    if (run.merged) {
        parts = {{0, in.live->size(), false, true}};
        run.no_embd.assign(model_.n_pos_per_embd() > 1 ? model_.n_embd_inp() : 0, 0.0f);
    }
    const AbortGuard abort(model_.cpu_backend(), interrupt);
    for (const Segment & segment : parts) {
        run_segment(run, segment);
    }
    run.out.scores = run.score.finish(range_.il_last);
    hidden = std::move(run.hidden_out);
    return std::move(run.out);
}

void Stage::run_segment(Run & run, const Segment & segment) {
    const Sequence & seq = *run.in.seq;
    std::vector<BatchRow> rows;
    for (size_t i = segment.begin; i < segment.end; ++i) {
        const Row & row = seq.rows[(*run.in.live)[i]];
        BatchRow r;
        r.pos = row.pos.data();
        if (run.merged) {
            r.token = 0;
            r.embd = run.no_embd.empty() ? nullptr : run.no_embd.data();
        } else if (segment.image) {
            r.embd = &seq.embd[static_cast<size_t>(row.index) * seq.n_embd_inp];
        } else {
            r.token = row.token;
        }
        r.seq_id = run.in.seq_id;
        r.output = wants_logits(run, i);
        rows.push_back(r);
    }
    // rows that see each other in both directions must be computed together
    const int32_t n_ubatch = segment.causal ? model_.params().n_ubatch : static_cast<int32_t>(rows.size());
    const auto placed = batcher_.place(*run.in.cache->memory(), rows, n_ubatch);
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
    want_one_output(ubatch);
    const GraphRequest request = prefill_request(ubatch, memory, run.sched, segment.causal, cache_.has_guests());
    std::vector<int32_t> rows;  // live rows, in the order of the ubatch
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        rows.push_back(static_cast<int32_t>(segment.begin) + ubatch.data->batch_idxs[i]);
    }
    const size_t n_nodes = model_.max_nodes() + run.score.n_nodes();
    ggml_context_ptr ctx;
    ggml_cgraph * graph = nullptr;
    do {
        ggml_init_params ip = {};
        ip.mem_size = ggml_graph_overhead_custom(n_nodes, false) + run.score.n_nodes() * ggml_tensor_overhead();
        ip.no_alloc = true;
        check_room(ip.mem_size, "the graph of a stage");
        ctx.reset(ggml_init(ip));
        graph = make_graph(run, request, rows, ctx.get());
    } while (!run.score.inputs_set(graph_));
    compute(run, segment, ubatch, graph);
}

// builds and allocates the graph of a ubatch and sets its inputs, except for the hidden states
ggml_cgraph * Stage::make_graph(Run & run, const GraphRequest & request, const std::vector<int32_t> & rows,
                                ggml_context * ctx) {
    ggml_backend_sched_reset(run.sched);
    graph_.build(request);
    ggml_cgraph * graph = assemble(ctx, model_.max_nodes() + run.score.n_nodes(), {&graph_});
    run.score.add_nodes(ctx, graph, graph_, rows, request.causal);
    if (!ggml_backend_sched_alloc_graph(run.sched, graph)) {
        throw NoMemory("no memory for the compute buffer of " + std::to_string(rows.size()) +
                       " rows; use a smaller n_ubatch");
    }
    graph_.result().set_inputs(request.ubatch);
    return graph;
}

void Stage::compute(Run & run, const Segment & segment, const llama_ubatch & ubatch, ggml_cgraph * graph) {
    if (graph_.input()) {
        run.hidden_in.write(graph_.input(), dim_in_, ubatch, segment.begin);
    }
    const ggml_status status = ggml_backend_sched_graph_compute(run.sched, graph);
    run.interrupt.check();
    if (status != GGML_STATUS_SUCCESS) {
        throw StageError("computing layers " + std::to_string(range_.il_first) + " to " +
                         std::to_string(range_.il_last - 1) + " failed: " + log_capture::last_error());
    }
    if (graph_.is_last()) {
        read_logits(run, segment, ubatch);
    } else {
        run.hidden_out.read(graph_.output(), dim_out_, ubatch, segment.begin);
    }
    run.score.computed();
}

// copies the logits of the rows that were asked for; a few architectures compute the logits of all rows
void Stage::read_logits(Run & run, const Segment & segment, const llama_ubatch & ubatch) const {
    const ggml_tensor * logits = graph_.output();
    const int64_t n_outputs = n_outputs_of(ubatch);
    const bool all_rows = logits->ne[1] != n_outputs;
    if (all_rows && logits->ne[1] != static_cast<int64_t>(ubatch.n_tokens)) {
        throw StageError("expected logits of " + std::to_string(n_outputs) + " rows, the graph gives " +
                         std::to_string(logits->ne[1]));
    }
    const auto n_vocab = static_cast<size_t>(logits->ne[0]);
    for (int64_t i = 0, out = 0; i < static_cast<int64_t>(ubatch.n_tokens); ++i) {
        if (!ubatch.output[i]) {
            continue;
        }
        const int64_t at = all_rows ? i : out;
        ++out;
        if (!wants_logits(run, segment.begin + ubatch.data->batch_idxs[i])) {
            continue;
        }
        const size_t old = run.out.logits.size();
        run.out.logits.resize(old + n_vocab);
        ggml_backend_tensor_get(logits, &run.out.logits[old], at * logits->nb[1], n_vocab * sizeof(float));
    }
}

// for row i of the live rows
bool Stage::wants_logits(const Run & run, size_t i) const {
    return graph_.is_last() && (run.in.all_logits || i + 1 == run.in.live->size());
}

}  // namespace atp
