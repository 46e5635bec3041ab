"""Packing of tiles once more, in NumPy and Python's own rounding, to hold the engine's against."""

import math

import numpy as np


def layout(side, grid, size, max_tiles=0):
    """The part of the grid that shows the image: (top, left, rows, cols), (out_rows, out_cols)."""
    rows, cols = (side * n for n in grid)
    height, width = size
    top = left = 0
    if width / height > cols / rows:
        top = (rows - int(round(height * (cols / width), 7))) // 2
    else:
        left = (cols - int(round(width * (rows / height), 7))) // 2
    rows, cols = rows - 2 * top, cols - 2 * left
    out = rows, cols
    if max_tiles:
        ratio = math.sqrt(rows * cols / (max_tiles * side**2))
        if ratio > 1.1:
            out = int(rows // ratio), int(cols // ratio)
    return (top, left, rows, cols), out


def pack(features, *, grid, size, newline=(), max_tiles=0):
    """[n_tiles, n_tokens, n_embd] -> rows [n, n_embd] and the grids they make."""
    n_tiles, n_tokens, n_embd = features.shape
    side = math.isqrt(n_tokens)
    line_end = np.asarray(newline, np.float32).reshape(-1, n_embd)
    grids = [(side, side)]
    if n_tiles == 1:
        rows = np.concatenate([features[0], line_end])
        return rows, grids + [(1, 1)] * len(line_end)
    (top, left, rows, cols), out = layout(side, grid, size, max_tiles)
    cells = features[1:].reshape(*grid, side, side, n_embd).transpose(0, 2, 1, 3, 4)
    cells = cells.reshape(grid[0] * side, grid[1] * side, n_embd)
    cells = cells[top : top + rows, left : left + cols]
    if out != (rows, cols):
        cells = shrunk(shrunk(cells, out[0], axis=0), out[1], axis=1)
    lines = [part for line in cells for part in (line, line_end)]
    if rows and out[1] + len(line_end):
        grids.append((out[0], out[1] + len(line_end)))
    return np.concatenate([features[0], *lines]), grids


def shrunk(cells, n_out, axis):
    """Linear interpolation along one axis, centres of cells at halves."""
    n = cells.shape[axis]
    at = np.clip((np.arange(n_out) + 0.5) * n / n_out - 0.5, 0, n - 1)
    first = np.minimum(at.astype(int), n - 1)
    second = np.minimum(first + 1, n - 1)
    shape = [-1 if k == axis else 1 for k in range(cells.ndim)]
    weight = (at - first).reshape(shape)
    mixed = cells.take(first, axis) * (1 - weight) + cells.take(second, axis) * weight
    return mixed.astype(np.float32)
