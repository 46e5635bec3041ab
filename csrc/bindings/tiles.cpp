#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/errors.h"
#include "bindings/arrays.h"
#include "bindings/registers.h"
#include "bindings/tiles.h"
#include "prompt/anyres.h"

namespace atp::python {

namespace {

using Pair = std::pair<int32_t, int32_t>;

constexpr int32_t most_in_a_line = 1024;

TileSet tile_set(Pair grid, Pair size, int32_t max_tiles) {
    const auto [rows, cols] = grid;
    const auto inside = [](int32_t n) { return n >= 0 && n <= most_in_a_line; };
    if (!inside(rows) || !inside(cols) || (rows == 0) != (cols == 0)) {
        throw ImageError("a grid of tiles has 1 to " + std::to_string(most_in_a_line) +
                         " rows and columns, or (0, 0) without tiles behind the overview; got (" +
                         std::to_string(rows) + ", " + std::to_string(cols) + ")");
    }
    if (size.first < 1 || size.second < 1 || max_tiles < 0) {
        throw ImageError("expected the image's height and width in pixels, and max_tiles of at least 0; got (" +
                         std::to_string(size.first) + ", " + std::to_string(size.second) + ") and " +
                         std::to_string(max_tiles));
    }
    return {rows, cols, size.first, size.second, max_tiles};
}

Tiles make_tiles(const ImageArray & tiles, Pair grid, Pair size, int32_t max_tiles) {
    Tiles out{tiles, tile_set(grid, size, max_tiles)};
    if (tiles.ndim() != 4 || tiles.shape(0) != out.set.n_tiles() || tiles.shape(3) != 3) {
        throw ImageError("tiles must be uint8 [" + std::to_string(out.set.n_tiles()) +
                         ", height, width, 3], the overview and the grid's, got [" + shape_text(tiles) + "]");
    }
    return out;
}

py::tuple pack(const FloatArray & features, Pair grid, Pair size, const std::vector<float> & newline,
               int32_t max_tiles) {
    const TileSet set = tile_set(grid, size, max_tiles);
    if (features.ndim() != 3 || features.shape(0) != set.n_tiles() || features.size() == 0 ||
        (!newline.empty() && static_cast<py::ssize_t>(newline.size()) != features.shape(2))) {
        throw ImageError("features must be [" + std::to_string(set.n_tiles()) + ", n_tokens, n_embd], got [" +
                         shape_text(features) + "], and newline [n_embd], got [" + std::to_string(newline.size()) +
                         "]");
    }
    const std::vector<float> values(features.data(), features.data() + features.size());
    const auto n_embd = static_cast<int32_t>(features.shape(2));
    const PackedImage packed = pack_tiles(values, set, n_embd, newline);
    std::vector<Pair> grids;
    for (const ImageSpan & span : packed.spans) {
        grids.emplace_back(span.grid_rows, span.grid_cols);
    }
    return py::make_tuple(matrix(packed.rows, n_embd), grids);
}

py::dict layout(int32_t side, Pair grid, Pair size, int32_t max_tiles) {
    if (side < 1 || side > most_in_a_line || grid.first < 1) {
        throw ImageError("expected tiles of 1 to " + std::to_string(most_in_a_line) +
                         " image tokens a line in a grid of at least one; got " + std::to_string(side));
    }
    const TileLayout at = tile_layout(tile_set(grid, size, max_tiles), side);
    py::dict out;
    out["top"] = at.top;
    out["left"] = at.left;
    out["rows"] = at.rows;
    out["cols"] = at.cols;
    out["out_rows"] = at.out_rows;
    out["out_cols"] = at.out_cols;
    return out;
}

}  // namespace

void register_tiles(py::module_ & m) {
    py::class_<Tiles>(m, "Tiles", "An image as squares of the vision encoder's size; goes wherever an image may.")
        .def(
            py::init(&make_tiles), py::arg("tiles"), py::arg("grid"), py::arg("size"), py::kw_only(),
            py::arg("max_tiles") = 0,
            "tiles: uint8 [1 + rows * cols, side, side, 3], the overview first, then the grid line by line. grid: rows "
            "and columns, (0, 0) for the overview alone. size: height and width of the image before it was prepared. "
            "max_tiles: a grid of more image tokens is shrunk to those of about so many tiles; 0: never.")
        .def_property_readonly("tiles", [](const Tiles & t) { return t.pixels; })
        .def_property_readonly("grid", [](const Tiles & t) { return Pair(t.set.rows, t.set.cols); })
        .def_property_readonly("size", [](const Tiles & t) { return Pair(t.set.height, t.set.width); })
        .def_property_readonly("max_tiles", [](const Tiles & t) { return t.set.max_tiles; });
    m.def("tile_layout", &layout, py::arg("side"), py::kw_only(), py::arg("grid"), py::arg("size"),
          py::arg("max_tiles") = 0,
          "Which of the tiles' image tokens show the image, when a tile has side * side: top, left, rows, cols in the "
          "grid of all; out_rows and out_cols after shrinking.");
    m.def("pack_tiles", &pack, py::arg("features"), py::kw_only(), py::arg("grid"), py::arg("size"),
          py::arg("newline") = std::vector<float>{}, py::arg("max_tiles") = 0,
          "features [1 + rows * cols, n_tokens, n_embd] -> rows float32 [n, n_embd] of the prompt, and the grids they "
          "make. newline [n_embd] ends each line of the tiles' grid.");
}

}  // namespace atp::python
