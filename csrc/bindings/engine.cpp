#include "engine/engine.h"

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <variant>

#include "base/errors.h"
#include "bindings/arrays.h"
#include "bindings/budget.h"
#include "bindings/calls.h"
#include "bindings/engine_handle.h"
#include "bindings/generation_args.h"
#include "bindings/registers.h"
#include "bindings/tiles.h"
#include "llama/gguf_check.h"
#include "llama/load_check.h"

namespace atp::python {

namespace {

using PromptImage = std::variant<Tiles, ImageArray>;

RgbImage check_image(const ImageArray & a) {
    if (a.ndim() != 3 || a.shape(2) != 3) {
        throw ImageError("an image must be uint8 [height, width, 3], got [" + shape_text(a) + "]");
    }
    return {a.data(), static_cast<int32_t>(a.shape(1)), static_cast<int32_t>(a.shape(0)), std::nullopt};
}

std::vector<RgbImage> check_images(const std::vector<PromptImage> & images) {
    std::vector<RgbImage> out;
    for (const PromptImage & image : images) {
        if (const Tiles * tiles = std::get_if<Tiles>(&image)) {
            const ImageArray & a = tiles->pixels;
            out.push_back({a.data(), static_cast<int32_t>(a.shape(2)), static_cast<int32_t>(a.shape(1)), tiles->set});
        } else {
            out.push_back(check_image(std::get<ImageArray>(image)));
        }
    }
    return out;
}

std::function<bool(const std::string &)> text_callback(const py::object & fn) {
    if (fn.is_none()) {
        return {};
    }
    // held by a shared pointer whose deleter takes the GIL: the engine copies and drops it without
    const std::shared_ptr<py::object> held(new py::object(fn), [](py::object * f) {
        const py::gil_scoped_acquire gil;
        delete f;
    });
    return [held](const std::string & text) {
        const InCallback gil;
        const py::object go_on = (*held)(decode(text));
        return go_on.is_none() || static_cast<bool>(py::bool_(go_on));
    };
}

// the class PreparedPrompt in Python; it keeps the pixels of tiles alive
struct Prepared {
    PreparedPrompt prompt;
    std::vector<ImageArray> pixels;
};

std::unique_ptr<Prepared> prepare(EngineHandle & engine, const std::string & prompt,
                                  const std::vector<PromptImage> & images) {
    const std::vector<RgbImage> checked = check_images(images);
    std::vector<ImageArray> pixels;
    for (const PromptImage & image : images) {
        if (const Tiles * tiles = std::get_if<Tiles>(&image)) {
            pixels.push_back(tiles->pixels);
        }
    }
    PreparedPrompt made =
        without_gil([&](Interrupt &) { return engine.beside([&](Engine & e) { return e.prepare(prompt, checked); }); });
    return std::unique_ptr<Prepared>(new Prepared{std::move(made), std::move(pixels)});
}

std::optional<KnownRows> known_rows(const std::optional<FloatArray> & embd) {
    if (!embd) {
        return std::nullopt;
    }
    if (embd->ndim() != 2) {
        throw ImageError("embd must be float32 [n_image_tokens, n_embd_inp], got [" + shape_text(*embd) + "]");
    }
    return KnownRows{embd->data(), static_cast<size_t>(embd->shape(0)), static_cast<size_t>(embd->shape(1))};
}

// `work` makes a Sequence of an Engine
template <typename Work>
Sequence sequence_of(EngineHandle & engine, Work work) {
    return without_gil([&](Interrupt & interrupt) {
        Sequence seq = engine.beside([&](Engine & e) { return work(e, interrupt); });
        interrupt.check();
        return seq;
    });
}

Sequence encode(EngineHandle & engine, const std::string & prompt, const std::vector<PromptImage> & images,
                const std::optional<FloatArray> & embd) {
    const std::vector<RgbImage> checked = check_images(images);
    const std::optional<KnownRows> known = known_rows(embd);
    return sequence_of(engine,
                       [&](Engine & e, Interrupt & interrupt) { return e.encode(prompt, checked, known, interrupt); });
}

Sequence encode_prepared(EngineHandle & engine, const Prepared & prepared) {
    return sequence_of(engine,
                       [&](Engine & e, Interrupt & interrupt) { return e.encode(prepared.prompt, {}, interrupt); });
}

Result generate(EngineHandle & engine, const std::string & prompt, const std::vector<PromptImage> & images,
                const Plan & plan, int32_t n_predict, float temp, int32_t top_k, float top_p, float min_p,
                uint32_t seed, const std::vector<std::string> & stop, const std::string & grammar,
                bool stop_on_repetition, float repeat_penalty, float frequency_penalty, float presence_penalty,
                int32_t repeat_last_n, const py::object & on_token) {
    Request request;
    request.prompt = prompt;
    request.images = check_images(images);
    request.plan = plan;
    request.generation = generation_params(
        n_predict,
        {temp, top_k, top_p, min_p, seed, grammar, repeat_penalty, frequency_penalty, presence_penalty, repeat_last_n},
        stop, stop_on_repetition);
    request.generation.on_text = text_callback(on_token);
    return without_gil(
        [&](Interrupt & interrupt) { return engine.use([&](Engine & e) { return e.generate(request, interrupt); }); });
}

void register_results(py::module_ & m) {
    py::class_<Result>(m, "Result", "A caption: text, token ids, why it ended, and its report.")
        .def_property_readonly("text", [](const Result & r) { return decode(r.text); })
        .def_readonly("tokens", &Result::tokens)
        .def_readonly("finish_reason", &Result::finish_reason)
        .def_readonly("error", &Result::error)
        .def_readonly("report", &Result::report);
}

void register_info(py::module_ & m) {
    py::class_<ModelInfo>(m, "ModelInfo", "What was loaded, and whether and where it can be cut (layer counts).")
        .def_readonly("arch", &ModelInfo::arch)
        .def_readonly("name", &ModelInfo::name)
        .def_readonly("chat_template", &ModelInfo::chat_template)
        .def_readonly("bos", &ModelInfo::bos)
        .def_readonly("eos", &ModelInfo::eos)
        .def_readonly("media_marker", &ModelInfo::media_marker)
        .def_readonly("add_bos", &ModelInfo::add_bos)
        .def_readonly("nfc", &ModelInfo::nfc)
        .def_readonly("lstrip", &ModelInfo::lstrip)
        .def_readonly("rstrip", &ModelInfo::rstrip)
        .def_readonly("n_layer", &ModelInfo::n_layer)
        .def_readonly("n_embd", &ModelInfo::n_embd)
        .def_readonly("n_vocab", &ModelInfo::n_vocab)
        .def_readonly("n_ctx_train", &ModelInfo::n_ctx_train)
        .def_readonly("n_params", &ModelInfo::n_params)
        .def_readonly("size_bytes", &ModelInfo::size_bytes)
        .def_readonly("has_vision", &ModelInfo::has_vision)
        .def_readonly("mrope", &ModelInfo::mrope)
        .def_readonly("can_prune", &ModelInfo::can_prune)
        .def_readonly("can_batch", &ModelInfo::can_batch)
        .def_readonly("why_not", &ModelInfo::why_not)
        .def_readonly("legal_cuts", &ModelInfo::legal_cuts)
        .def_readonly("atp_cuts", &ModelInfo::atp_cuts)
        .def_readonly("devices", &ModelInfo::devices);
}

}  // namespace

py::str decode(const std::string & text) {
    return py::reinterpret_steal<py::str>(
        PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "replace"));
}

void register_engine(py::module_ & m) {
    register_report(m);
    register_results(m);
    register_info(m);
    m.def("check_loadable", &check_loadable, py::arg("path"), py::call_guard<WithoutGil>(),
          "ModelError with llama.cpp's reason unless it loads the file, a text model or a vision projector, up to the "
          "names and shapes of its tensors; their data is not read.");
    m.def("check_gguf", &check_gguf, py::arg("path"),
          "general.architecture of a whole GGUF file ('clip' for a projector); ModelError says what else the file is.");
    py::class_<Prepared>(m, "PreparedPrompt", "A prompt tokenised, its images as the vision encoder takes them.");
    EngineClass engine(m, "Engine", "Image to caption: vision encoder, staged decoder, sampler.");
    register_batch(m, engine);
    engine
        .def(py::init([](const std::string & model, const std::string & mmproj, const std::string & atp,
                         int32_t n_gpu_layers, int32_t n_ctx, int32_t n_ubatch, int32_t n_threads,
                         int32_t n_threads_encode, const std::string & flash_attn, const std::string & type_k,
                         const std::string & type_v, bool self_test) {
                 const WithoutGil inside;
                 return std::make_unique<EngineHandle>(
                     ModelParams{model, n_gpu_layers, n_ctx, n_ubatch, n_threads, 1, flash_attn, type_k, type_v},
                     VisionParams{mmproj, n_threads_encode}, atp, self_test);
             }),
             py::arg("model"), py::arg("mmproj") = "", py::arg("atp") = "", py::kw_only(), py::arg("n_gpu_layers") = -1,
             py::arg("n_ctx") = 4096, py::arg("n_ubatch") = 512, py::arg("n_threads") = 0,
             py::arg("n_threads_encode") = 0, py::arg("flash_attn") = "auto", py::arg("type_k") = "f16",
             py::arg("type_v") = "f16", py::arg("self_test") = true)
        .def("close", &EngineHandle::close, py::call_guard<WithoutGil>(),
             "Free model, projector and caches; using the engine again is a ModelError.")
        .def_property_readonly("info", &EngineHandle::info)
        .def_property_readonly(
            "tested",
            [](EngineHandle & engine) {
                const auto tested = [&] {
                    const py::gil_scoped_release release;
                    return engine.use([](Engine & e) { return e.tested(); });
                }();
                py::dict out;
                for (const auto & [cuts, reason] : tested) {
                    out[py::tuple(py::cast(cuts))] = reason;
                }
                return out;
            },
            "The sets of cuts that the self-test has compared with llama.cpp, and why each must not be used ('': it "
            "may).")
        .def(
            "atp_plan",
            [](EngineHandle & engine, const py::object & budget) {
                const std::optional<AtpBudget> wanted = to_budget(budget);
                const WithoutGil inside;
                return engine.use([&](Engine & e) { return e.atp_plan(wanted); });
            },
            py::arg("budget") = py::none(),
            "The cuts of the loaded sidecar. budget: float (fraction of the image tokens) or int (their count), in the "
            "mean over layers; None lets the learned thresholds decide.")
        .def("encode", &encode, py::arg("prompt"), py::arg("images"), py::kw_only(), py::arg("embd") = py::none(),
             "The rows that generate would prefill: text tokens, and image tokens with their projected embeddings. "
             "embd: float32 [n_image_tokens, n_embd_inp] of an earlier encode of the same images; the vision encoder "
             "does not run. May be called from another thread while captions are computed.")
        .def("prepare", &prepare, py::arg("prompt"), py::arg("images"),
             "The first half of encode, from any thread: the prompt tokenised, its images resized and normalised.")
        .def("encode_prepared", &encode_prepared, py::arg("prepared"), "The second half: the vision encoder's work.")
        .def(
            "generate", &generate, py::arg("prompt"), py::arg("images"), py::kw_only(), py::arg("plan") = Plan{},
            py::arg("n_predict") = 128, py::arg("temp") = 0.0f, py::arg("top_k") = 40, py::arg("top_p") = 0.95f,
            py::arg("min_p") = 0.05f, py::arg("seed") = 0, py::arg("stop") = std::vector<std::string>{},
            py::arg("grammar") = "", py::arg("stop_on_repetition") = false, py::arg("repeat_penalty") = 1.0f,
            py::arg("frequency_penalty") = 0.0f, py::arg("presence_penalty") = 0.0f, py::arg("repeat_last_n") = 64,
            py::arg("on_token") = py::none(),
            "prompt holds one media marker per image; images are uint8 [h, w, 3], or Tiles. grammar (GBNF) is what the "
            "text must follow. on_token gets new text, and ends the caption by returning False; of a loop ended by "
            "stop_on_repetition it has had more rounds than the text keeps.");
}

}  // namespace atp::python
