#include "vision/vision.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "base/errors.h"
#include "base/stopwatch.h"
#include "llama/gguf_check.h"
#include "llama/log_capture.h"
#include "llama/memory_room.h"
#include "llama/model.h"
#include "mtmd-helper.h"
#include "mtmd.h"
#include "prompt/image_grid.h"

namespace atp {

namespace {

mtmd_context * open_projector(const Model & model, const VisionParams & vision) {
    const std::string & path = vision.path;
    if (vision.n_threads < 0 || vision.n_threads > GGML_MAX_N_THREADS) {
        throw ModelError("n_threads_encode must be 0 to " + std::to_string(GGML_MAX_N_THREADS) + ", got " +
                         std::to_string(vision.n_threads));
    }
    const std::string arch = check_gguf(path);
    if (arch != "clip") {
        throw ModelError(path + " is a text model (architecture '" + arch +
                         "'), not a vision projector: pass the mmproj file");
    }
    mtmd_context_params params = mtmd_context_params_default();
    params.use_gpu = model.params().n_gpu_layers != 0;
    params.print_timings = false;
    params.n_threads = vision.n_threads > 0 ? vision.n_threads : model.params().n_threads;
    params.warmup = false;
    // the encoder's flash attention rounds keys and values to halves, as the decoder's does with an F16 cache
    if (model.params().flash_attn != "auto") {
        params.flash_attn_type =
            model.params().flash_attn == "on" ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    check_room(sched_bytes(encoder_nodes), "the projector's graphs");
    log_capture::clear();
    mtmd_context * ctx = mtmd_init_from_file(path.c_str(), model.llama(), params);
    if (!ctx) {
        throw ModelError("the projector " + path + " does not work with " + model.params().path + ": " +
                         log_capture::last_error());
    }
    return ctx;
}

// numbers out of what mtmd_input_chunk_save writes
class Saved {
  public:
    explicit Saved(const mtmd_input_chunk * chunk) {
        size_t n_bytes = 0;
        if (mtmd_input_chunk_save(chunk, nullptr, 0, &n_bytes) == 0) {
            bytes_.resize(n_bytes);
            mtmd_input_chunk_save(chunk, bytes_.data(), n_bytes, nullptr);
        }
    }

    template <typename T>
    T take() {
        T value{};
        if (at_ + sizeof(T) <= bytes_.size()) {
            std::memcpy(&value, bytes_.data() + at_, sizeof(T));
        }
        at_ += sizeof(T);
        return value;
    }

    void skip(uint64_t n_bytes) { at_ += static_cast<size_t>(std::min<uint64_t>(n_bytes, bytes_.size() + 1)); }

    bool at_end() const { return at_ == bytes_.size(); }

  private:
    std::vector<char> bytes_;
    size_t at_ = 0;
};

// Pixels of an image as the encoder gets it, {0, 0} if they cannot be told. libmtmd has no function for them, but they
// are in what it saves of a chunk (mtmd.cpp, version 2 of that format)
std::pair<int32_t, int32_t> prepared_size(const mtmd_input_chunk * chunk) {
    constexpr std::pair<int32_t, int32_t> unknown{0, 0};
    Saved saved(chunk);
    if (saved.take<uint64_t>() != 2 || saved.take<uint32_t>() != MTMD_INPUT_CHUNK_TYPE_IMAGE) {
        return unknown;
    }
    saved.skip(saved.take<uint64_t>() * sizeof(int32_t));  // text
    if (saved.take<uint8_t>() != 1) {
        return unknown;
    }
    saved.skip(5 * sizeof(uint32_t));    // nx, ny, kind of positions, number of the image, frames merged
    saved.skip(saved.take<uint64_t>());  // id
    saved.skip(sizeof(uint8_t));         // is it audio
    if (saved.take<uint64_t>() != 1) {   // several pictures in one chunk
        return unknown;
    }
    saved.skip(2 * sizeof(uint8_t) + sizeof(int32_t));  // separators and padding
    const auto width = saved.take<int32_t>();
    const auto height = saved.take<int32_t>();
    saved.skip(sizeof(uint8_t));  // no audio
    return saved.at_end() && width > 0 && height > 0 ? std::make_pair(width, height) : unknown;
}

// rows of an image by its M-RoPE positions; 1 if they are no grid
int32_t mrope_rows(int32_t n_tokens, const std::vector<std::array<int32_t, 4>> & pos) {
    int32_t y0 = pos[0][1];
    int32_t y1 = y0;
    for (const auto & p : pos) {
        y0 = std::min(y0, p[1]);
        y1 = std::max(y1, p[1]);
    }
    const int32_t rows = y1 - y0 + 1;
    return n_tokens % rows == 0 ? rows : 1;
}

ImageError wrong_count(const KnownRows & known, const std::string & has) {
    return ImageError("embeddings of " + std::to_string(known.n_tokens) + " image tokens were given, and this prompt " +
                      has + "; encode the images again");
}

uint64_t next_id() {
    static std::atomic<uint64_t> last{0};
    return ++last;
}

size_t count_markers(const std::string & prompt, const std::string & marker) {
    size_t n = 0;
    for (size_t at = prompt.find(marker); at != std::string::npos; at = prompt.find(marker, at + marker.size())) {
        ++n;
    }
    return n;
}

}  // namespace

Vision::Vision(const Model & model, const VisionParams & params)
    : model_(model), id_(next_id()), ctx_(open_projector(model, params), mtmd_free) {
    if (!mtmd_support_vision(ctx_.get())) {
        throw ModelError(params.path + " holds no vision encoder (audio only?)");
    }
    file_ = read_projector_file(params.path, model.n_embd_inp());
}

Vision::~Vision() = default;

std::string Vision::media_marker() {
    return mtmd_default_marker();
}

void Vision::check_image(const RgbImage & image) const {
    if (image.width < 1 || image.height < 1) {
        throw ImageError("an image of " + std::to_string(image.width) + "x" + std::to_string(image.height) +
                         " pixels has nothing to see");
    }
    if (image.tiles) {
        check_tiles(image);
    }
}

void Vision::check_tiles(const RgbImage & image) const {
    if (!file_.has_fixed_size()) {
        throw ImageError("tiles need a projector of one fixed image size, and this one is of type " + file_.type +
                         "; give the image itself");
    }
    if (image.width != file_.image_size || image.height != file_.image_size) {
        throw ImageError("this projector takes tiles of " + std::to_string(file_.image_size) + "x" +
                         std::to_string(file_.image_size) + " pixels, got " + std::to_string(image.width) + "x" +
                         std::to_string(image.height));
    }
    if (!file_.why_no_newline.empty()) {
        throw ModelError("this projector's " + file_.why_no_newline + "; convert it again");
    }
    if (image.tiles->n_tiles() > 1 && file_.newline.empty()) {
        throw ImageError("this projector takes one tile an image, got " + std::to_string(image.tiles->n_tiles()) +
                         ": it has no v.image_newline, which ends the lines of a grid of tiles");
    }
}

// libmtmd's parts of the prompt; an image's parts carry its number as their id
void Vision::tokenize(const std::string & prompt, const std::vector<RgbImage> & images, bool add_special,
                      mtmd_input_chunks * out) const {
    mtmd::bitmaps bitmaps;
    for (const RgbImage & image : images) {
        bitmaps.entries.emplace_back(static_cast<uint32_t>(image.width), static_cast<uint32_t>(image.height),
                                     image.data);
        bitmaps.entries.back().set_id(std::to_string(bitmaps.entries.size() - 1).c_str());
    }
    const auto pointers = bitmaps.c_ptr();
    const mtmd_input_text text = {prompt.c_str(), prompt.size(), add_special, /*parse_special*/ true};
    log_capture::clear();
    // the array may be the address of an empty vector
    if (mtmd_tokenize(ctx_.get(), out, &text, const_cast<const mtmd_bitmap **>(pointers.data()), pointers.size())) {
        throw ImageError("libmtmd cannot prepare the images: " + log_capture::last_error());
    }
}

PreparedPrompt Vision::prepare(const std::string & prompt, const std::vector<RgbImage> & images) const {
    const size_t n_markers = count_markers(prompt, media_marker());
    if (n_markers != images.size()) {
        throw ImageError("the prompt has " + std::to_string(n_markers) + " media markers (" + media_marker() +
                         ") for " + std::to_string(images.size()) + " images; it needs one each");
    }
    for (const RgbImage & image : images) {
        check_image(image);
    }
    PreparedPrompt prepared{{mtmd_input_chunks_init(), mtmd_input_chunks_free}, images, id_};
    tokenize(prompt, images, /*add_special*/ true, prepared.chunks.get());
    return prepared;
}

Sequence Vision::encode(const PreparedPrompt & prompt, const std::optional<KnownRows> & known,
                        Interrupt & interrupt) const {
    if (prompt.made_by != id_) {
        throw ImageError("this prompt was prepared by another engine; prepare it with the one that encodes it");
    }
    Sequence seq;
    seq.n_embd_inp = model_.n_embd_inp();
    for (size_t i = 0; i < mtmd_input_chunks_size(prompt.chunks.get()); ++i) {
        const mtmd_input_chunk * chunk = mtmd_input_chunks_get(prompt.chunks.get(), i);
        const mtmd_input_chunk_type type = mtmd_input_chunk_get_type(chunk);
        if (type == MTMD_INPUT_CHUNK_TYPE_TEXT) {
            size_t n = 0;
            const llama_token * tokens = mtmd_input_chunk_get_tokens_text(chunk, &n);
            std::for_each(tokens, tokens + n, [&](llama_token t) { seq.add_text(t); });
            continue;
        }
        if (type != MTMD_INPUT_CHUNK_TYPE_IMAGE) {
            throw ImageError("this projector makes audio of an image; only images are supported");
        }
        interrupt.check();
        const size_t source = std::stoul(mtmd_input_chunk_get_id(chunk));
        const size_t n_spans = seq.images.size();
        add_image(seq, chunk, prompt.images.at(source), known, interrupt);
        for (size_t s = n_spans; s < seq.images.size(); ++s) {
            seq.images[s].source = static_cast<int32_t>(source);
        }
    }
    if (known && known->n_tokens != static_cast<size_t>(seq.n_image_tokens())) {
        throw wrong_count(*known, "has " + std::to_string(seq.n_image_tokens()));
    }
    return seq;
}

const float * Vision::encode_chunk(const mtmd_input_chunk * chunk) const {
    check_room(0, "encoding an image");
    log_capture::clear();
    if (mtmd_encode_chunk(ctx_.get(), chunk) != 0) {
        const std::string reason = log_capture::last_error();
        if (reason.find("failed to allocate") != std::string::npos || reason.find("bad_alloc") != std::string::npos) {
            throw NoMemory("no memory to encode an image: " + reason + "; use a smaller image or model");
        }
        throw ImageError("the vision encoder failed: " + reason);
    }
    return mtmd_get_output_embd(ctx_.get());
}

// the next rows of the known rows
const float * Vision::known_rows(const KnownRows & known, const Sequence & seq, size_t n_tokens) const {
    const auto first = static_cast<size_t>(seq.n_image_tokens());
    if (known.n_embd != static_cast<size_t>(model_.n_embd_inp())) {
        throw ImageError("the embeddings given for the images are " + std::to_string(known.n_embd) +
                         " wide, this model takes " + std::to_string(model_.n_embd_inp()));
    }
    if (first + n_tokens > known.n_tokens) {
        throw wrong_count(known, "has at least " + std::to_string(first + n_tokens));
    }
    return known.data + first * known.n_embd;
}

void Vision::add_image(Sequence & seq, const mtmd_input_chunk * chunk, const RgbImage & image,
                       const std::optional<KnownRows> & known, Interrupt & interrupt) const {
    const Stopwatch encode_time;
    const size_t n_tokens = mtmd_input_chunk_get_n_tokens(chunk);
    if (image.tiles) {
        // a layout has rows of one value
        const std::vector<float> newline(file_.newline.empty() ? 0 : 1, 0.0f);
        const PackedImage packed =
            known ? pack_tiles(std::vector<float>(n_tokens * image.tiles->n_tiles()), *image.tiles, 1, newline)
                  : pack_tiles(encode_tiles(chunk, image, interrupt), *image.tiles, model_.n_embd_inp(), file_.newline);
        const float * rows = known ? known_rows(*known, seq, packed.rows.size()) : packed.rows.data();
        add_tiles(seq, chunk, packed.spans, rows);
    } else {
        add_image_chunk(seq, chunk, known ? known_rows(*known, seq, n_tokens) : encode_chunk(chunk));
    }
    seq.t_encode += known ? 0.0 : encode_time.ms();
}

void Vision::set_grid(ImageSpan & span, const mtmd_input_chunk * chunk,
                      const std::vector<std::array<int32_t, 4>> & pos) const {
    const int32_t rows = pos.empty() ? 1 : mrope_rows(span.n_tokens, pos);
    if (rows > 1) {
        span.grid_rows = rows;
        span.grid_cols = span.n_tokens / rows;
        return;
    }
    const auto [width, height] = prepared_size(chunk);
    const ImageGrid grid = image_grid({file_.type, !file_.line_break.empty(), span.n_tokens, width, height});
    span.grid_rows = grid.rows;
    span.grid_cols = grid.cols;
}

void Vision::add_image_chunk(Sequence & seq, const mtmd_input_chunk * chunk, const float * embd) const {
    ImageSpan span;
    span.n_tokens = static_cast<int32_t>(mtmd_input_chunk_get_n_tokens(chunk));
    span.causal = !mtmd_decode_use_non_causal(ctx_.get(), chunk);
    std::vector<std::array<int32_t, 4>> pos;
    if (mtmd_decode_use_mrope(ctx_.get())) {
        std::vector<mtmd_decoder_pos> where(span.n_tokens);
        mtmd_helper_image_get_decoder_pos(mtmd_input_chunk_get_tokens_image(chunk), seq.n_pos, where.data());
        for (const auto & p : where) {
            pos.push_back({static_cast<int32_t>(p.t), static_cast<int32_t>(p.y), static_cast<int32_t>(p.x),
                           static_cast<int32_t>(p.z)});
        }
    }
    set_grid(span, chunk, pos);
    seq.add_image(embd, span, pos.empty() ? nullptr : &pos, static_cast<int32_t>(mtmd_input_chunk_get_n_pos(chunk)));
    if (span.grid_rows * span.grid_cols > span.n_tokens) {
        write_breaks(seq, span);
    }
}

// writes the line breaks: libmtmd computes them as uninitialised memory times 0, and sometimes the result is NaN
void Vision::write_breaks(Sequence & seq, const ImageSpan & span) const {
    const auto n_embd = static_cast<size_t>(model_.n_embd_inp());
    const size_t first = seq.embd.size() / n_embd - static_cast<size_t>(span.n_tokens);
    for (int32_t i = span.grid_cols - 1; i < span.n_tokens; i += span.grid_cols) {
        std::copy(file_.line_break.begin(), file_.line_break.end(),
                  seq.embd.begin() + static_cast<std::ptrdiff_t>((first + static_cast<size_t>(i)) * n_embd));
    }
}

void Vision::add_tiles(Sequence & seq, const mtmd_input_chunk * chunk, const std::vector<ImageSpan> & spans,
                       const float * rows) const {
    for (ImageSpan span : spans) {
        span.causal = !mtmd_decode_use_non_causal(ctx_.get(), chunk);
        seq.add_image(rows, span, nullptr, span.n_tokens);
        rows += static_cast<size_t>(span.n_tokens) * model_.n_embd_inp();
    }
}

// first: the overview, as libmtmd found it in the prompt. The tiles are given to libmtmd one by one, each as the image
// of a separate prompt
std::vector<float> Vision::encode_tiles(const mtmd_input_chunk * first, const RgbImage & image,
                                        Interrupt & interrupt) const {
    const size_t n_tokens = mtmd_input_chunk_get_n_tokens(first);
    const size_t n_values = n_tokens * model_.n_embd_inp();
    const float * embd = encode_chunk(first);
    std::vector<float> features(embd, embd + n_values);
    for (int32_t t = 1; t < image.tiles->n_tiles(); ++t) {
        interrupt.check();
        const mtmd::input_chunks chunks(mtmd_input_chunks_init());
        tokenize(media_marker(), {image.tile(t)}, /*add_special*/ false, chunks.ptr.get());
        if (chunks.size() != 1 || mtmd_input_chunk_get_n_tokens(chunks[0]) != n_tokens) {
            throw ImageError("libmtmd cut a tile into pieces; this projector takes one tile an image");
        }
        embd = encode_chunk(chunks[0]);
        features.insert(features.end(), embd, embd + n_values);
    }
    return features;
}

Sequence tokenize_text(const Model & model, const std::string & prompt) {
    std::vector<llama_token> tokens(prompt.size() + 8);
    const int32_t n = llama_tokenize(model.vocab(), prompt.c_str(), static_cast<int32_t>(prompt.size()), tokens.data(),
                                     static_cast<int32_t>(tokens.size()), true, true);
    if (n < 0) {
        throw StageError("the prompt does not tokenise (" + std::to_string(-n) + " tokens needed)");
    }
    Sequence seq;
    seq.n_embd_inp = model.n_embd_inp();
    std::for_each(tokens.begin(), tokens.begin() + n, [&](llama_token t) { seq.add_text(t); });
    return seq;
}

}  // namespace atp
