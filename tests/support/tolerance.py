"""One table of tolerances: backend x precision x what is compared; no other test states one.

`precision` is the type of the KV cache; "f32" also means F32 weights and no flash attention, so
that nothing but F32 arithmetic rounds. Some models have rows of their own:

- gemma3 ("GELU table"): its GELU reads a table of 65,536 halves, so that a difference in the last
  bit of an F32 can come out as one in the last bit of an F16.
- qwen2moe ("experts"): where two experts score alike, a rounding can choose the other one.
- SmolLM2-135M ("deep"), its weights in F32: 30 trained layers, in which roundings grow.
"""

from __future__ import annotations

ANY = "any"

# (backend, precision, what) -> largest NMSE; of "staged = whole" and "device = CPU" the largest
# |difference|.
# In the comment: what was measured, over all tiny models with that row.
TABLE = {
    # cutting changes no operation and no order of operations: equal bit for bit
    ("cpu", ANY, "staged = whole"): 0.0,  # 0.0
    # hidden rows take part in softmax sums as zeros: other SIMD lanes, other roundings
    ("cpu", "f32", "pruned = masked"): 5e-12,  # 7.0e-13
    ("cpu", "f32, GELU table", "pruned = masked"): 3e-8,  # 3.9e-9
    ("cpu", "f32, experts", "pruned = masked"): 5e-12,  # 4.3e-13
    ("cpu", "f16", "pruned = masked"): 5e-6,  # 9.8e-7
    ("cpu", "f16, GELU table", "pruned = masked"): 5e-6,  # 4.8e-7
    ("cpu", "f16, experts", "pruned = masked"): 3e-4,  # 2.5e-5
    ("cpu", "q8_0", "pruned = masked"): 1e-12,  # 1.1e-15
    ("cpu", "q8_0, GELU table", "pruned = masked"): 1e-12,  # 1.1e-14
    ("cpu", "q8_0, experts", "pruned = masked"): 1e-12,  # 0.0
    # the later layers of a hybrid, over the survivors: as they follow each other, not by ubatches
    ("cpu", "f32", "pruned = tail of survivors"): 1e-13,  # 1.2e-14
    # NumPy takes q and k before they are rounded to the type of the cache
    ("cpu", "f32", "scores = NumPy"): 5e-11,  # 8.1e-12
    ("cpu", "f32, GELU table", "scores = NumPy"): 5e-9,  # 5.1e-10
    ("cpu", "f32, experts", "scores = NumPy"): 5e-11,  # 9.0e-12
    ("cpu", "f16", "scores = NumPy"): 5e-4,  # 5.9e-5
    ("cpu", "f16, GELU table", "scores = NumPy"): 3e-5,  # 2.7e-6
    ("cpu", "f16, experts", "scores = NumPy"): 5e-4,  # 6.5e-5
    ("cpu", "q8_0", "scores = NumPy"): 5e-3,  # 9.2e-4
    ("cpu", "q8_0, GELU table", "scores = NumPy"): 5e-3,  # 1.3e-4
    ("cpu", "q8_0, experts", "scores = NumPy"): 5e-3,  # 5.8e-4
    ("cpu", "f32", "scores = softmax"): 5e-11,  # 8.9e-12
    ("cpu", "f32, GELU table", "scores = softmax"): 5e-9,  # 5.0e-10
    ("cpu", "f32, experts", "scores = softmax"): 5e-11,  # 9.4e-12
    # the same of ATP's sums over image rows and question rows
    ("cpu", "f32", "sums = NumPy"): 1e-11,  # 1.8e-12
    ("cpu", "f32, GELU table", "sums = NumPy"): 3e-9,  # 3.8e-10
    ("cpu", "f32, experts", "sums = NumPy"): 5e-12,  # 4.8e-13
    ("cpu", "f16", "sums = NumPy"): 3e-5,  # 4.4e-6
    ("cpu", "f16, GELU table", "sums = NumPy"): 3e-6,  # 2.4e-7
    ("cpu", "f16, experts", "sums = NumPy"): 3e-5,  # 2.9e-6
    ("cpu", "q8_0", "sums = NumPy"): 3e-3,  # 5.3e-4
    ("cpu", "q8_0, GELU table", "sums = NumPy"): 1e-3,  # 1.3e-4
    ("cpu", "q8_0, experts", "sums = NumPy"): 2e-3,  # 2.4e-4
    ("cpu", "f32", "sums = softmax"): 1e-11,  # 1.9e-12
    ("cpu", "f32, GELU table", "sums = softmax"): 3e-9,  # 3.8e-10
    ("cpu", "f32, experts", "sums = softmax"): 5e-12,  # 4.8e-13
    # one matrix product for two rows rounds otherwise than two products
    ("cpu", "f32", "together = alone"): 2e-12,  # 2.6e-13
    ("cpu", "f32, GELU table", "together = alone"): 2e-8,  # 2.1e-9
    ("cpu", "f32, experts", "together = alone"): 2e-12,  # 2.1e-13
    ("cpu", "f16", "together = alone"): 1e-6,  # 8.7e-8
    ("cpu", "f16, GELU table", "together = alone"): 1e-6,  # 4.1e-8
    ("cpu", "f16, experts", "together = alone"): 1e-6,  # 8.4e-8
    ("cpu", "q8_0", "together = alone"): 1e-5,  # 1.8e-7
    ("cpu", "q8_0, GELU table", "together = alone"): 1e-5,  # 1.0e-6
    ("cpu", "q8_0, experts", "together = alone"): 1e-5,  # 5.2e-14
    # the same, with cells of others between one's own
    ("cpu", "f32", "batch = alone"): 5e-12,  # 3.6e-13
    ("cpu", "f32, GELU table", "batch = alone"): 1e-7,  # 1.5e-8
    ("cpu", "f32, experts", "batch = alone"): 5e-12,  # 3.1e-13
    ("cpu", "f16", "batch = alone"): 3e-6,  # 3.1e-7
    ("cpu", "f16, GELU table", "batch = alone"): 3e-6,  # 2.1e-7
    ("cpu", "f16, experts", "batch = alone"): 3e-3,  # 3.5e-4
    ("cpu", "q8_0", "batch = alone"): 1e-5,  # 8.6e-7
    ("cpu", "q8_0, GELU table", "batch = alone"): 1e-5,  # 1.3e-6
    ("cpu", "q8_0, experts", "batch = alone"): 1e-5,  # 1.6e-9
    ("cpu", "f32, deep", "pruned = masked"): 5e-11,  # 8.6e-12
    ("cpu", "f32, deep", "scores = NumPy"): 5e-12,  # 4.8e-13
    ("cpu", "f32, deep", "scores = softmax"): 5e-12,  # 3.4e-13
    ("cpu", "f32, deep", "sums = NumPy"): 1e-11,  # 1.5e-12
    ("cpu", "f32, deep", "sums = softmax"): 1e-11,  # 1.5e-12
    ("cpu", "f16, deep", "sums = NumPy"): 1e-5,  # 1.8e-6
    ("cpu", "f32, deep", "together = alone"): 2e-12,  # 1.3e-13
    ("cpu", "f16, deep", "pruned = masked"): 1e-5,  # 1.9e-6
    ("cpu", "f16, deep", "scores = NumPy"): 5e-6,  # 5.5e-7
    ("cpu", "f16, deep", "together = alone"): 1e-6,  # 1.1e-7
    # any architecture of llama.cpp, of random weights (arch_laws.py); many have GELU tables
    ("cpu", "f32, archs", "pruned = masked"): 1e-6,
    ("cpu", "f32, archs", "scores = softmax"): 1e-8,
    ("cpu", "f32, archs", "batch = alone"): 1e-6,
    ("cpu", "f32, archs", "last row = all rows"): 1e-7,
    ("cpu", "f16, archs", "last row = all rows"): 1e-7,
    ("cpu", "f16, archs", "F16 = F32"): 1e-2,
    # plain llama.cpp with itself: one matrix product for one row, or for a few
    ("cpu", ANY, "last row = all rows"): 1e-12,  # 2.2e-14
    ("cpu", "f32", "short ubatches = long"): 1e-12,  # 0.0
    # what quantising the weights of the tiny llama costs its logits; a trained model loses less
    ("cpu", "f16", "quantised = F32"): 3e-6,  # 5.3e-7
    ("cpu", "bf16", "quantised = F32"): 2e-4,  # 3.2e-5
    ("cpu", "q8_0", "quantised = F32"): 2e-3,  # 5.2e-4
    ("cpu", "q4_k_m", "quantised = F32"): 6e-2,  # 2.8e-2
    # tiles' features: moved, not computed with, unless a large grid is shrunk by interpolation
    ("cpu", "f32", "packed tiles = NumPy"): 0.0,  # 0.0
    ("cpu", "f32", "shrunk tiles = NumPy"): 5e-12,  # 8.7e-13
    ("cpu", "f32", "packed tiles = transformers"): 0.0,  # 0.0
    ("cpu", "f32", "shrunk tiles = transformers"): 5e-12,  # 7.4e-13
    # a converted checkpoint and transformers, both in F32: ggml's GELU reads a table of halves, and
    # takes the tanh form where PyTorch's is exact
    ("cpu", "f32", "features = transformers"): 6e-7,  # 3.4e-7
    ("cpu", "f32", "logits = transformers"): 1e-6,  # 8.3e-7
    ("cpu", "f32, deep", "logits = transformers"): 1e-6,  # 3.9e-8
    # from the same features
    ("cpu", "f32", "decoder = transformers"): 2e-9,  # 5.8e-10
    ("cpu", "f32, GELU table", "decoder = transformers"): 1e-6,  # 1.6e-7
    # the same on ggml's RPC device and the CPU at once: all, half or none of the layers over there
    ("rpc", ANY, "staged = whole"): 0.0,  # 0.0
    ("rpc", ANY, "device = CPU"): 0.0,  # 0.0; the server computes on a CPU, too
    ("rpc", "f16", "pruned = masked"): 5e-6,  # 1.3e-6
    ("rpc", "f16, GELU table", "pruned = masked"): 5e-6,  # 1.0e-6
    ("rpc", "f16, experts", "pruned = masked"): 3e-4,  # 7.0e-7
    ("rpc", "f32", "pruned = masked"): 5e-12,  # 2.7e-13
    ("rpc", "f32, GELU table", "pruned = masked"): 3e-8,  # 3.8e-9
    ("rpc", "f32, experts", "pruned = masked"): 5e-12,  # 1.8e-13
    ("rpc", "q8_0", "pruned = masked"): 1e-12,  # 0.0
    ("rpc", "q8_0, GELU table", "pruned = masked"): 1e-12,  # 0.0
    ("rpc", "q8_0, experts", "pruned = masked"): 1e-12,  # 0.0
    ("rpc", "f16", "scores = NumPy"): 5e-4,  # 5.0e-5
    ("rpc", "f16, GELU table", "scores = NumPy"): 3e-5,  # 3.9e-6
    ("rpc", "f16, experts", "scores = NumPy"): 5e-4,  # 2.3e-5
    ("rpc", "f32", "scores = NumPy"): 5e-11,  # 3.1e-12
    ("rpc", "f32, GELU table", "scores = NumPy"): 5e-9,  # 5.9e-14
    ("rpc", "f32, experts", "scores = NumPy"): 5e-11,  # 1.4e-12
    ("rpc", "q8_0", "scores = NumPy"): 5e-3,  # 5.9e-4
    ("rpc", "q8_0, GELU table", "scores = NumPy"): 5e-3,  # 6.8e-5
    ("rpc", "q8_0, experts", "scores = NumPy"): 5e-3,  # 2.3e-4
    ("rpc", "f32", "scores = softmax"): 5e-11,  # 3.5e-12
    ("rpc", "f32, GELU table", "scores = softmax"): 5e-9,  # 1.1e-15
    ("rpc", "f32, experts", "scores = softmax"): 5e-11,  # 1.3e-12
    ("rpc", "f16", "sums = NumPy"): 3e-5,  # 2.0e-6
    ("rpc", "f16, GELU table", "sums = NumPy"): 3e-6,  # 1.1e-7
    ("rpc", "f16, experts", "sums = NumPy"): 3e-5,  # 3.7e-6
    ("rpc", "f32", "sums = NumPy"): 1e-11,  # 2.6e-13
    ("rpc", "f32, GELU table", "sums = NumPy"): 3e-9,  # 2.8e-14
    ("rpc", "f32, experts", "sums = NumPy"): 5e-12,  # 4.8e-13
    ("rpc", "q8_0", "sums = NumPy"): 3e-3,  # 7.2e-5
    ("rpc", "q8_0, GELU table", "sums = NumPy"): 1e-3,  # 3.7e-5
    ("rpc", "q8_0, experts", "sums = NumPy"): 2e-3,  # 4.2e-5
    ("rpc", "f32", "sums = softmax"): 1e-11,  # 3.5e-13
    ("rpc", "f32, GELU table", "sums = softmax"): 3e-9,  # 8.4e-16
    ("rpc", "f32, experts", "sums = softmax"): 5e-12,  # 4.8e-13
    ("rpc", "f16", "together = alone"): 1e-6,  # 1.4e-7
    ("rpc", "f16, GELU table", "together = alone"): 1e-6,  # 3.6e-8
    ("rpc", "f16, experts", "together = alone"): 1e-6,  # 8.2e-8
}


def bound(backend: str, precision: str, what: str) -> float:
    """The table's row, or the row for any precision."""
    return TABLE.get((backend, precision, what), TABLE.get((backend, ANY, what), float("nan")))


def check(error: float, backend: str, precision: str, what: str) -> None:
    """Fail unless the error is within the table (a row that is missing fails, too)."""
    limit = bound(backend, precision, what)
    assert error <= limit, f"{what} on {backend}, {precision}: {error:.2e} is above {limit:.0e}"
