"""Checkpoints that llama.cpp converts compute after conversion what transformers computes."""

import json
import shutil

import numpy as np
import pytest

from atp_cpp import _core as core
from atp_cpp.convert.run import convert_hf
from atp_cpp.errors import ConvertError
from atp_cpp.models.gguf_header import read_header, read_tensor
from support.hf_models import TILE, write_tiny
from support.hf_parity import (
    MARKER,
    Pair,
    continuation,
    cosine,
    decoder,
    photograph,
    prefill,
    same_but_for_near_ties,
)
from support.rig import nmse
from support.tolerance import check

pytestmark = pytest.mark.torch

# sizes that need no resizing on either side; several tiles where there are tiles
SAME_PIXELS = {
    "qwen2_vl": (140, 196),
    "qwen2_5_vl": (252, 308),
    "qwen3_vl": (256, 320),
    "gemma3": (TILE, TILE),
    "smolvlm": (2 * TILE, 4 * TILE),
    "internvl": (2 * TILE, 3 * TILE),
}
# (height, width): a small one; one with a side halfway between two multiples of 28; a broad one
PHOTOGRAPHS = ((97, 120), (50, 70), (112, 300))
PROMPT = f"Describe this picture {MARKER} in detail, and tell me what you see in it. There are 3"
N_DECODED = 64


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """`pair(family) -> Pair`, converted once."""
    folder = tmp_path_factory.mktemp("families")
    made = {}

    def get(family):
        if family not in made:
            from transformers import AutoImageProcessor

            model = write_tiny(family, folder / family)
            text, mmproj = convert_hf(
                folder / family, folder, outtype="f32", mmproj_outtype="f32", force=True
            )
            processor = AutoImageProcessor.from_pretrained(folder / family, backend="pil")
            made[family] = Pair(family, model, processor, text.path, mmproj.path)
        return made[family]

    return get


@pytest.fixture(scope="session")
def q8_0(tmp_path_factory):
    """`q8_0(pair) -> Path` of the text model, quantised."""
    folder = tmp_path_factory.mktemp("quantised")

    def quantise(pair):
        path = folder / f"{pair.family}-q8_0.gguf"
        core.quantise(str(pair.text), str(path), "q8_0", n_threads=1)
        return path

    return quantise


def precision(family):
    """The row of the table of tolerances for a language model."""
    return "f32, GELU table" if family == "gemma3" else "f32"


@pytest.mark.parametrize("family", SAME_PIXELS)
def test_the_same_pixels_give_the_same_features(pair, family):
    both = pair(family)
    pixels = photograph(*SAME_PIXELS[family])
    expected = both.features(pixels)
    measured = both.engine().encode(PROMPT, [pixels]).embd
    # tokens differ from each other: agreement is not about one vector repeated
    assert np.std(expected, axis=0).mean() > 0.3 * np.std(expected)
    assert cosine(expected, measured).min() > 0.9999
    check(nmse(expected, measured), "cpu", "f32", "features = transformers")


@pytest.mark.parametrize("family", SAME_PIXELS)
def test_photographs_give_the_same_features(pair, family):
    """Through the whole preparation, to the last grey level: the same filters, sizes and tiles."""
    both = pair(family)
    engine = both.engine()
    for size in PHOTOGRAPHS:
        pixels = photograph(*size)
        expected = both.features(pixels)
        measured = engine.encode(PROMPT, [pixels]).embd
        assert measured.shape == expected.shape, f"{size}: another number of image tokens"
        check(nmse(expected, measured), "cpu", "f32", "features = transformers")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "smolvlm", "internvl"])
def test_a_photograph_that_pillow_resizes_in_another_order(pair, family):
    """From version 13 Pillow resizes some images by their rows first, llama.cpp by columns."""
    both = pair(family)
    pixels = photograph(*((480, 640) if family == "qwen2_5_vl" else (700, 301)))
    measured = both.engine().encode(PROMPT, [pixels]).embd
    assert cosine(both.features(pixels), measured).mean() > 0.999


@pytest.mark.parametrize("family", SAME_PIXELS)
def test_the_same_logits_and_the_same_continuation(pair, family):
    """Two images: what follows the first stands where its rows say."""
    import torch

    both = pair(family)
    pictures = [photograph(*SAME_PIXELS[family], seed) for seed in (1, 2)]
    seq = both.engine().encode(f"First {MARKER} and then: {PROMPT}", pictures)
    given = both.inputs(seq.tokens, *pictures)
    with torch.no_grad():
        expected = both.model(**given).logits[0].numpy()
        said = both.model.generate(
            **given, max_new_tokens=N_DECODED, eos_token_id=-1, do_sample=False
        )
    ours = decoder(both.text)
    features = np.concatenate([both.features(pixels) for pixels in pictures])
    alone = prefill(ours, both.rows(seq, features))
    check(nmse(expected, alone), "cpu", precision(family), "decoder = transformers")
    ours.remove(0)
    logits = prefill(ours, seq)
    check(nmse(expected, logits), "cpu", "f32", "logits = transformers")
    tokens, _ = continuation(ours, logits[-1], seq.n_pos, N_DECODED)
    assert tokens == said[0, seq.n_rows :].tolist()
    assert len(set(tokens)) > 10


@pytest.mark.parametrize("family", SAME_PIXELS)
def test_q8_0_says_the_same_but_for_near_ties(pair, q8_0, family):
    """Teacher-forced: along the reply in F32."""
    both = pair(family)
    pixels = photograph(*SAME_PIXELS[family])
    seq = both.engine().encode(PROMPT, [pixels])
    exact, rounded = decoder(both.text), decoder(q8_0(both))
    said, rows = continuation(exact, prefill(exact, seq)[-1], seq.n_pos, N_DECODED)
    _, theirs = continuation(rounded, prefill(rounded, seq)[-1], seq.n_pos, N_DECODED, said)
    share = same_but_for_near_ties(rows, theirs)
    assert share >= 0.9
    print(f"{family}: Q8_0 agrees in {share:.1%} of {N_DECODED} steps")


def tensors(path):
    """Names, shapes and values."""
    header = read_header(path)
    return {name: read_tensor(path, header, name).tobytes() for name in header.tensors}


def test_both_layouts_of_internvl_are_the_same_files(pair):
    original, theirs = pair("internvl"), pair("internvl_hf")
    assert tensors(original.mmproj) == tensors(theirs.mmproj)
    assert tensors(original.text) == tensors(theirs.text)


def test_gemma_3_as_transformers_5_names_its_tensors(pair, tmp_path):
    """It saves no "vision_model" in the names, which every published checkpoint has."""
    from safetensors.numpy import load_file, save_file

    published = pair("gemma3")
    folder = tmp_path / "gemma3"
    shutil.copytree(published.text.parent / "gemma3", folder)
    state = load_file(folder / "model.safetensors")
    renamed = {name.replace("vision_model.", ""): value for name, value in state.items()}
    assert renamed.keys() != state.keys()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    files = convert_hf(folder, tmp_path, outtype="f32", mmproj_outtype="f32")
    assert files[0].path.read_bytes() == published.text.read_bytes()
    assert files[1].path.read_bytes() == published.mmproj.read_bytes()


def test_qwen_vl_keeps_the_limits_of_its_images(pair):
    """The largest within llama.cpp's 4096 image tokens."""
    limits = [
        [read_header(pair(family).mmproj).metadata[f"clip.vision.image_{end}_pixels"]
        for end in ("min", "max")]
        for family in ("qwen2_vl", "qwen3_vl")
    ]  # fmt: skip
    assert limits == [[3136, 4096 * 28**2], [65536, 4096 * 32**2]]


def test_what_llama_cpp_would_compute_otherwise_is_refused_before_anything_is_written(
    pair, tmp_path
):
    folder = tmp_path / "gelu"
    shutil.copytree(pair("qwen2_vl").text.parent / "qwen2_vl", folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "relu"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ConvertError, match=r"hidden_act is 'relu'; llama\.cpp computes 'quick_gelu'"
    ):
        convert_hf(folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))
