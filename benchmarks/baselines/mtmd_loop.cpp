// Captions images one after the other with llama.cpp's own libraries, as a careful user of the mtmd API would write it.
//
//   mtmd-loop MODEL MMPROJ N_CTX N_PREDICT N_BATCH N_UBATCH N_THREADS PROMPT
//
// PROMPT holds the media marker and is tokenised as it is. The program says "ready", then reads one path a line from
// stdin and answers each with one line on stdout:
//   n_prompt n_decoded t_load t_encode t_prefill t_decode text      (ms; text with \n and \\ escaped)
// Greedy; the KV cache is cleared between images. N_PREDICT > 0: exactly that many tokens, end tokens are not heeded.
// N_PREDICT < 0: at most that many, and an end token ends the caption.
// No candidate array is made for the sampler: the largest logit is taken directly, the cheapest there is.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "llama.h"
#include "mtmd-helper.h"
#include "mtmd.h"

namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

[[noreturn]] void fail(const std::string & what) {
    std::fprintf(stderr, "mtmd-loop: %s\n", what.c_str());
    std::exit(1);
}

void need(bool ok, const std::string & what) {
    if (!ok) {
        fail(what);
    }
}

void only_errors(ggml_log_level level, const char * text, void * /*user*/) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
}

struct Settings {
    std::string model;
    std::string mmproj;
    int n_ctx;
    int n_predict;
    int n_batch;
    int n_ubatch;
    int n_threads;
    std::string prompt;
};

struct Times {
    double load = 0;
    double encode = 0;
    double prefill = 0;
    double decode = 0;
};

class Loop {
  public:
    explicit Loop(const Settings & settings) : settings_(settings) {
        llama_model_params model_params = llama_model_default_params();
        model_.reset(llama_model_load_from_file(settings.model.c_str(), model_params));
        need(model_ != nullptr, "cannot load " + settings.model);
        llama_context_params params = llama_context_default_params();
        params.n_ctx = settings.n_ctx;
        params.n_batch = settings.n_batch;
        params.n_ubatch = settings.n_ubatch;
        params.n_threads = settings.n_threads;
        params.n_threads_batch = settings.n_threads;
        context_.reset(llama_init_from_model(model_.get(), params));
        need(context_ != nullptr, "cannot make a context");
        mtmd_context_params vision_params = mtmd_context_params_default();
        vision_params.n_threads = settings.n_threads;
        vision_params.print_timings = false;
        vision_.reset(mtmd_init_from_file(settings.mmproj.c_str(), model_.get(), vision_params));
        need(vision_ != nullptr, "cannot load " + settings.mmproj);
        vocab_ = llama_model_get_vocab(model_.get());
        n_vocab_ = llama_vocab_n_tokens(vocab_);
    }

    void caption(const std::string & path) {
        Times times;
        int n_prompt = 0;
        llama_memory_clear(llama_get_memory(context_.get()), true);
        prefill(path, times, n_prompt);
        const Clock::time_point start = Clock::now();
        int n_decoded = 0;
        const std::string text = decode(n_decoded);
        times.decode = ms_since(start);
        std::printf("%d %d %.3f %.3f %.3f %.3f %s\n", n_prompt, n_decoded, times.load, times.encode, times.prefill,
                    times.decode, text.c_str());
        std::fflush(stdout);
    }

  private:
    void prefill(const std::string & path, Times & times, int & n_prompt) {
        Clock::time_point start = Clock::now();
        const mtmd_helper_bitmap_wrapper opened =
            mtmd_helper_bitmap_init_from_file(vision_.get(), path.c_str(), false, mtmd_helper_init_opt_default());
        const mtmd::bitmap_ptr bitmap(opened.bitmap);
        need(bitmap != nullptr, "cannot open " + path);
        const mtmd::input_chunks_ptr chunks(mtmd_input_chunks_init());
        const mtmd_bitmap * bitmaps[] = {bitmap.get()};
        const mtmd_input_text text = {settings_.prompt.c_str(), settings_.prompt.size(), true, true};
        need(mtmd_tokenize(vision_.get(), chunks.get(), &text, bitmaps, 1) == 0, "cannot tokenise");
        times.load = ms_since(start);

        llama_pos n_past = 0;
        const size_t n_chunks = mtmd_input_chunks_size(chunks.get());
        for (size_t i = 0; i < n_chunks; ++i) {
            const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks.get(), i);
            n_prompt += static_cast<int>(mtmd_input_chunk_get_n_tokens(chunk));
            start = Clock::now();
            if (mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_TEXT) {
                need(mtmd_helper_eval_chunk_single(vision_.get(), context_.get(), chunk, n_past, 0, settings_.n_batch,
                                                   i + 1 == n_chunks, &n_past) == 0,
                     "cannot decode text");
                times.prefill += ms_since(start);
                continue;
            }
            // what mtmd_helper_eval_chunk_single does with an image, its two halves timed apart
            need(mtmd_encode_chunk(vision_.get(), chunk) == 0, "cannot encode " + path);
            times.encode += ms_since(start);
            start = Clock::now();
            need(mtmd_helper_decode_image_chunk(vision_.get(), context_.get(), chunk,
                                                mtmd_get_output_embd(vision_.get()), n_past, 0, settings_.n_batch,
                                                &n_past, nullptr, nullptr) == 0,
                 "cannot decode image rows");
            times.prefill += ms_since(start);
        }
    }

    std::string decode(int & n_decoded) {
        const bool heeds_end = settings_.n_predict < 0;
        const int n_predict = std::abs(settings_.n_predict);
        std::string text;
        while (n_decoded < n_predict) {
            const float * logits = llama_get_logits_ith(context_.get(), -1);
            auto token = static_cast<llama_token>(std::max_element(logits, logits + n_vocab_) - logits);
            if (heeds_end && llama_vocab_is_eog(vocab_, token)) {
                break;
            }
            append_piece(text, token);
            if (++n_decoded == n_predict) {
                break;  // nobody needs the logits after the last token
            }
            need(llama_decode(context_.get(), llama_batch_get_one(&token, 1)) == 0, "cannot decode a token");
        }
        return text;
    }

    void append_piece(std::string & text, llama_token token) const {
        char piece[256];
        const int n = llama_token_to_piece(vocab_, token, piece, sizeof(piece), 0, false);
        for (int i = 0; i < n; ++i) {
            if (piece[i] == '\n') {
                text += "\\n";
            } else if (piece[i] == '\\') {
                text += "\\\\";
            } else {
                text += piece[i];
            }
        }
    }

    struct ModelDeleter {
        void operator()(llama_model * model) const { llama_model_free(model); }
    };

    struct ContextDeleter {
        void operator()(llama_context * context) const { llama_free(context); }
    };

    Settings settings_;
    std::unique_ptr<llama_model, ModelDeleter> model_;
    std::unique_ptr<llama_context, ContextDeleter> context_;
    mtmd::context_ptr vision_;
    const llama_vocab * vocab_ = nullptr;
    int n_vocab_ = 0;
};

}  // namespace

int main(int argc, char ** argv) {
    if (argc != 9) {
        fail("usage: mtmd-loop MODEL MMPROJ N_CTX N_PREDICT N_BATCH N_UBATCH N_THREADS PROMPT");
    }
    llama_log_set(only_errors, nullptr);
    mtmd_helper_log_set(only_errors, nullptr);
    llama_backend_init();
    Loop loop({argv[1], argv[2], std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5]), std::atoi(argv[6]),
               std::atoi(argv[7]), argv[8]});
    std::puts("ready");
    std::fflush(stdout);
    for (std::string path; std::getline(std::cin, path);) {
        loop.caption(path);
    }
    return 0;
}
