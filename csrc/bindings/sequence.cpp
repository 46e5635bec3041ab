#include "prompt/sequence.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/errors.h"
#include "bindings/arrays.h"
#include "bindings/registers.h"

namespace atp::python {

namespace {

void add_image(Sequence & seq, const FloatArray & embd, std::pair<int32_t, int32_t> grid, bool causal,
               const std::optional<IntArray> & pos, int32_t n_pos) {
    if (grid.first < 1 || grid.second < 1) {
        throw ImageError("an image needs a grid of at least 1 x 1 tokens, got " + std::to_string(grid.first) + " x " +
                         std::to_string(grid.second));
    }
    ImageSpan span;
    span.grid_rows = grid.first;
    span.grid_cols = grid.second;
    span.n_tokens = grid.first * grid.second;
    span.causal = causal;
    if (embd.ndim() != 2 || embd.shape(0) != span.n_tokens || embd.shape(1) != seq.n_embd_inp) {
        throw ImageError("image embeddings must be [grid rows * cols = " + std::to_string(span.n_tokens) +
                         ", n_embd_inp = " + std::to_string(seq.n_embd_inp) + "]");
    }
    std::vector<std::array<int32_t, 4>> where;
    if (pos) {
        if (pos->ndim() != 2 || pos->shape(0) != span.n_tokens || pos->shape(1) != 4) {
            throw ImageError("pos must be [" + std::to_string(span.n_tokens) + ", 4]: t, y, x, extra of each token");
        }
        for (int32_t i = 0; i < span.n_tokens; ++i) {
            where.push_back({pos->at(i, 0), pos->at(i, 1), pos->at(i, 2), pos->at(i, 3)});
        }
    }
    seq.add_image(embd.data(), span, pos ? &where : nullptr, n_pos > 0 ? n_pos : span.n_tokens);
}

}  // namespace

void register_sequence(py::module_ & m) {
    py::class_<Sequence>(m, "Sequence", "One prompt as rows: text tokens, and image tokens with their embeddings.")
        .def(py::init([](int32_t n_embd_inp) {
                 Sequence seq;
                 seq.n_embd_inp = n_embd_inp;
                 return seq;
             }),
             py::arg("n_embd_inp"))
        .def(
            "add_text",
            [](Sequence & seq, const std::vector<int32_t> & tokens) {
                for (const int32_t t : tokens) {
                    seq.add_text(t);
                }
            },
            py::arg("tokens"))
        .def("add_image", &add_image, py::arg("embd"), py::kw_only(), py::arg("grid"), py::arg("causal") = true,
             py::arg("pos") = py::none(), py::arg("n_pos") = 0,
             "embd: float32 [rows * cols, n_embd_inp]. pos: int32 [n, 4] absolute positions (M-RoPE). n_pos: positions "
             "the "
             "image takes, by default one a token.")
        .def_property_readonly("n_rows", [](const Sequence & seq) { return seq.rows.size(); })
        .def_property_readonly("n_image_tokens", &Sequence::n_image_tokens)
        .def_readonly("n_pos", &Sequence::n_pos)
        .def_readonly("t_encode", &Sequence::t_encode, "ms that the vision encoder took for it.")
        .def_property_readonly(
            "image_rows",
            [](const Sequence & seq) {
                std::vector<int32_t> rows;
                for (size_t i = 0; i < seq.rows.size(); ++i) {
                    if (seq.rows[i].kind == RowKind::image) {
                        rows.push_back(static_cast<int32_t>(i));
                    }
                }
                return rows;
            },
            "Row of each image token, by image-token index.")
        .def_property_readonly(
            "tokens",
            [](const Sequence & seq) {
                std::vector<int32_t> tokens;
                for (const Row & row : seq.rows) {
                    tokens.push_back(row.token);
                }
                return tokens;
            },
            "Token id of each row; -1 where an image token stands.")
        .def_property_readonly(
            "embd",
            [](const Sequence & seq) {
                const std::vector<py::ssize_t> shape = {seq.n_image_tokens(), seq.n_embd_inp};
                return py::array_t<float>(shape, seq.embd.data());
            },
            "float32 [n_image_tokens, n_embd_inp], a copy.")
        .def_property_readonly(
            "grids",
            [](const Sequence & seq) {
                std::vector<std::pair<int32_t, int32_t>> grids;
                for (const ImageSpan & span : seq.images) {
                    grids.emplace_back(span.grid_rows, span.grid_cols);
                }
                return grids;
            },
            "(rows, cols) of each image's patch grid.");
}

}  // namespace atp::python
