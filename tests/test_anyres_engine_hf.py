"""LLaVA-NeXT and LLaVA-OneVision from photo to text: transformers, and the converted files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import tolerance
from atp_cpp import Captioner, SamplingConfig
from atp_cpp import _core as core
from atp_cpp.captioner import image_spec_of
from atp_cpp.convert.run import convert_hf
from atp_cpp.preprocess import prepare
from atp_cpp.views import as_tiles
from pictures_of_all_shapes import picture
from rig import EXACT, nmse
from tiny_anyres_hf import write_anyres_checkpoint

pytestmark = pytest.mark.torch

MARKER = "<__media__>"
OPTIONS: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1, **EXACT}
SHAPES = [(56, 56), (100, 170), (333, 250), (61, 400), (480, 640), (500, 40)]
TURN = "USER: {}\nWhat is in the image? ASSISTANT:"


@dataclass
class Both:
    """A model as transformers runs it, and as the engine does."""

    model: Any
    processor: Any
    spec: Any
    text_path: Any
    mmproj_path: Any
    engine: core.Engine
    decoder: core.Decoder

    def tiles(self, images):
        prepared = [prepare(image, self.spec, n_images=len(images)) for image in images]
        return [as_tiles(one, self.spec) for one in prepared]

    def theirs(self, text, images):
        """Inputs of the model; images as the chat template hands them over: one list a prompt."""
        from PIL import Image

        pillow = [Image.fromarray(image) for image in images]
        text = text.replace(MARKER, "<image>")
        inputs = self.processor(text=[text], images=[pillow], return_tensors="pt")
        return inputs

    def encode(self, text, images):
        return self.engine.encode(text, self.tiles(images))


@pytest.fixture(scope="module", params=["next", "onevision"])
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = write_anyres_checkpoint(request.param, folder / "tiny")
    text, mmproj = convert_hf(folder / "tiny", folder, outtype="f32", mmproj_outtype="f32")
    engine = core.Engine(str(text.path), str(mmproj.path), **OPTIONS)
    decoder = core.Decoder(core.ModelParams(str(text.path), **OPTIONS))
    spec = image_spec_of(mmproj.path)
    yield Both(model, processor, spec, text.path, mmproj.path, engine, decoder)
    engine.close()


def features(both, inputs):
    """Rows of all images of a prompt, [n, n_embd]."""
    import torch

    keys = ("pixel_values", "image_sizes", "batch_num_images")
    with torch.no_grad():
        out = both.model.get_image_features(**{k: inputs[k] for k in keys if k in inputs})
    return torch.cat(list(out.pooler_output)).numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_features_of_a_photo_are_theirs(both, shape):
    images = [picture(shape)]
    inputs = both.theirs(TURN.format(MARKER), images)
    seq = both.encode(TURN.format(MARKER), images)
    expected = features(both, inputs)
    tolerance.check(nmse(expected, seq.embd), "cpu", "f32", "tiles' rows = transformers")
    image_token = both.model.config.image_token_id
    assert [image_token if t == -1 else t for t in seq.tokens] == inputs["input_ids"][0].tolist()


def test_several_photos_in_one_prompt_are_theirs(both):
    text = TURN.format(MARKER + MARKER)
    images = [picture((100, 170)), picture((90, 40))]
    inputs = both.theirs(text, images)
    seq = both.encode(text, images)
    expected = features(both, inputs)
    tolerance.check(nmse(expected, seq.embd), "cpu", "f32", "tiles' rows = transformers")
    image_token = both.model.config.image_token_id
    assert [image_token if t == -1 else t for t in seq.tokens] == inputs["input_ids"][0].tolist()


def test_logits_and_greedy_text_are_theirs(both):
    import torch

    text, images = TURN.format(MARKER), [picture((100, 170))]
    inputs = both.theirs(text, images)
    with torch.no_grad():
        expected = both.model(**inputs).logits[0].numpy()
        generated = both.model.generate(**inputs, do_sample=False, max_new_tokens=24)
    ours = both.decoder.prefill(both.encode(text, images), all_logits=True)["logits"]
    both.decoder.remove(0)
    tolerance.check(nmse(expected, ours), "cpu", "f32", "tiles' logits = transformers")
    result = both.engine.generate(text, both.tiles(images), n_predict=24)
    theirs = generated[0, inputs["input_ids"].shape[1] :].tolist()
    assert result.tokens == theirs[: len(result.tokens)]
    assert len(result.tokens) == 24 or result.finish_reason == "stop"
    assert len(set(result.tokens)) > 3, "something is said"


def spelled(tokenizer, reply):
    """The text of token ids. Theirs makes one sign of a run of bytes that is no UTF-8."""
    pieces = tokenizer.convert_ids_to_tokens(reply, skip_special_tokens=True)
    if not any(piece.startswith("<0x") for piece in pieces):
        return tokenizer.decode(reply, skip_special_tokens=True).strip()
    spelt = (
        bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.encode()
        for piece in pieces
    )
    return b"".join(spelt).decode(errors="replace").replace("\u2581", " ").strip()


@pytest.mark.parametrize("shapes", [[(100, 170)], [(333, 250), (61, 200)]], ids=["one", "two"])
def test_a_caption_is_their_reply_to_the_same_chat(both, shapes):
    import torch
    from PIL import Image

    images = [picture(shape) for shape in shapes]
    question = "What is in the image?"
    parts = [{"type": "image", "image": Image.fromarray(image)} for image in images]
    turn = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    inputs = both.processor.apply_chat_template(
        [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = both.model.generate(**inputs, do_sample=False, max_new_tokens=24)
    theirs = spelled(both.processor.tokenizer, out[0, inputs["input_ids"].shape[1] :])
    sampling = SamplingConfig(n_predict=24)
    with Captioner(both.text_path, mmproj=both.mmproj_path, **OPTIONS) as captioner:
        caption = captioner.caption(images, question, sampling=sampling)
    assert caption.report.n_prompt == inputs["input_ids"].shape[1]
    assert caption.text == theirs
    assert len(theirs) > 5


def test_the_rule_in_the_file_is_their_processors(both):
    images = [picture((123, 77))]
    (tiles,) = both.tiles(images)
    inputs = both.theirs(TURN.format(MARKER), images)
    mean, std = (
        np.array(getattr(both.processor.image_processor, f"image_{k}"))[:, None, None]
        for k in ("mean", "std")
    )
    ours = (np.moveaxis(tiles.tiles, -1, 1) / 255 - mean) / std
    np.testing.assert_allclose(ours, inputs["pixel_values"][0].numpy(), atol=1e-5)
