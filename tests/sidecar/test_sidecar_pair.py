"""Whose a sidecar is: the fingerprint, pairs that fit and pairs that do not."""

import gguf
import pytest

from atp_cpp import _core as core
from atp_cpp.sidecar.sidecar import fingerprint_from_arrays, fingerprint_from_gguf
from support.sidecar_files import example

N_LAYER = 8  # of the tiny models


@pytest.fixture(scope="module")
def pair(tiny_model):
    """`pair(**changes)`: checks a sidecar of the tiny llama, so changed, against a tiny model."""

    def params(arch="llama", **sizes):
        return core.ModelParams(str(tiny_model(arch, **sizes)), n_ctx=64, n_threads=1)

    def check(tmp_path, model=None, **changes):
        own = {"fingerprint": fingerprint_from_gguf(tiny_model("llama"))}
        shape = {"n_layer": N_LAYER, "n_embd": 128, "n_head": 4}
        path = example(**(own | shape | changes)).write_gguf(tmp_path / "atp.gguf")
        core.check_pair(core.load_sidecar(str(path)), model or params())

    check.params = params
    return check


ARCHS = ("llama", "qwen2", "qwen2vl", "qwen3vl", "gemma3", "phi3", "qwen2moe")


@pytest.mark.parametrize("arch", ARCHS)
def test_one_fingerprint_in_both_languages(tiny_model, pair, arch):
    path = tiny_model(arch)
    tensors = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    norms = [tensors["output_norm.weight"]]
    for il in range(N_LAYER):
        norms += [tensors[f"blk.{il}.{kind}_norm.weight"] for kind in ("attn", "ffn")]
    ours = fingerprint_from_gguf(path)
    assert ours == fingerprint_from_arrays(norms) == core.model_fingerprint(pair.params(arch))
    assert len(ours) == 64


def test_a_fingerprint_is_a_models_own(tiny_model):
    own = fingerprint_from_gguf(tiny_model("llama"))
    for weight_type in ("f16", "q8_0", "q4_0"):
        assert fingerprint_from_gguf(tiny_model("llama", weight_type=weight_type)) == own
    assert fingerprint_from_gguf(tiny_model("llama", seed=2)) != own
    assert fingerprint_from_gguf(tiny_model("llama", n_layer=3)) != own


def test_a_model_without_a_fingerprint(tmp_path, tiny_model, tiny_mmproj):
    path = tmp_path / "renamed.gguf"
    content = tiny_model("llama").read_bytes()
    path.write_bytes(content.replace(b"blk.2.ffn_norm.weight", b"blk.2.ffn_nrom.weight"))
    assert fingerprint_from_gguf(path) == fingerprint_from_gguf(tiny_mmproj("mlp")) == ""
    path.write_bytes(content[: len(content) // 8])
    with pytest.raises(core.ModelError, match="cut short"):
        fingerprint_from_gguf(path)


PAIRS = {
    "architecture": ({"arch": "qwen2"}, "is for the architecture 'qwen2', the model has 'llama'"),
    "depth": ({"n_layer": 5}, "is for a depth of 5, the model has 8"),
    "width": ({"n_embd": 64}, "is for a width of 64, the model has [0-9]+;"),
    "heads": ({"n_head": 3}, "is for a number of attention heads of 3, the model has [0-9]+;"),
    "weights": (
        {"fingerprint": "ab" * 32},
        "is for the fingerprint (ab){32}, the model has [0-9a-f]{64}",
    ),
}


@pytest.mark.parametrize(("changes", "reason"), PAIRS.values(), ids=PAIRS)
def test_pairs_that_do_not_fit(tmp_path, pair, changes, reason):
    with pytest.raises(core.ModelError, match=reason) as error:
        pair(tmp_path, **changes)
    message = str(error.value)
    assert "atp.gguf (trained for 'tiny') does not fit " in message
    assert "use the sidecar of this model" in message


def test_pairs_that_fit(tmp_path, pair):
    for weight_type in ("f32", "q8_0"):
        pair(tmp_path, pair.params(weight_type=weight_type))
    with pytest.raises(core.ModelError, match="the fingerprint"):
        pair(tmp_path, pair.params(seed=2))


def test_llama_cpp_refuses_a_sidecar_by_name(tmp_path, tiny_model):
    """Given as --lora, llama.cpp's own loader says which adapter it wants and which it got."""
    path = example().write_gguf(tmp_path / "atp.gguf")
    plain = core.Reference(core.ModelParams(str(tiny_model("llama")), n_ctx=64, n_threads=1))
    with pytest.raises(core.ModelError, match=r"expect adapter.type to be 'lora', but got: atp"):
        plain.load_lora(str(path))
