"""Converted LLaVA checkpoints compute what transformers computes: features, logits, replies."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atp_cpp import _core as core
from atp_cpp.convert import convert_hf
from atp_cpp.images.prepare import prepare
from atp_cpp.images.views import as_tiles
from atp_cpp.models.files import image_spec_of
from atp_cpp.models.gguf_header import read_header
from support import tolerance
from support.convert_many import convert_many
from support.hf_llava import KINDS, TILE, write_llava
from support.hf_parity import continuation, cosine, prefill, same_but_for_near_ties
from support.rig import EXACT, nmse

pytestmark = pytest.mark.torch

PHOTO = Path(__file__).parents[2] / "examples" / "scene.png"
OPTIONS = {"n_ctx": 1024, "n_threads": 1, **EXACT}
N_GREEDY = 64
QUESTION = "What is in the image?"
# (height, width): of the encoder's own size, wide, tall, extreme, smaller than the encoder's
SHAPES = [(TILE, TILE), (TILE, 3 * TILE), (150, 97), (61, 300), (40, 33)]


class Converted:
    """A tiny checkpoint, its model in transformers, and its files in F32."""

    def __init__(self, folder, model, text, mmproj):
        from transformers import AutoImageProcessor

        self.model, self.text = model, text
        self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self.spec = image_spec_of(mmproj)
        self.engine = core.Engine(str(self.text), str(mmproj), self_test=False, **OPTIONS)

    def decoder(self, text=None):
        decoder = core.Decoder(core.ModelParams(str(text or self.text), **OPTIONS))
        decoder.set_plan([])
        return decoder

    def logits_along(self, reply, image, text=None):
        """Ours before each token of a reply, [n, n_vocab]."""
        seq = self.encode(image)
        seq.add_text(reply[:-1])
        return self.decoder(text).prefill(seq, all_logits=True)["logits"][-len(reply) :]

    def prompt(self, n_images=1):
        return f"{self.engine.info.media_marker * n_images}\n{QUESTION}"

    def prepared(self, *images):
        """The images as the engine takes them."""
        ready = [prepare(image, self.spec, n_images=len(images)) for image in images]
        return [as_tiles(one, self.spec) for one in ready]

    def encode(self, *images):
        """The question about the images, as the engine lays it out."""
        return self.engine.encode(self.prompt(len(images)), self.prepared(*images))

    def pixels(self, *images):
        """pixel_values, and what else transformers' encoder takes."""
        pillow = [Image.fromarray(image) for image in images]
        tiled = bool(self.spec.pinpoints)
        return self.processor(images=[pillow] if tiled else pillow, return_tensors="pt")

    def features(self, *images):
        """transformers' projected features, [n_image_tokens, n_embd]."""
        import torch

        with torch.no_grad():
            out = self.model.get_image_features(**self.pixels(*images))
        return torch.cat(list(out.pooler_output)).numpy()

    def inputs(self, image):
        """What transformers' model takes for the same rows."""
        import torch

        image_token = self.model.config.image_token_index
        ids = [image_token if token < 0 else token for token in self.encode(image).tokens]
        return {"input_ids": torch.tensor([ids]), **self.pixels(image)}

    def greedy_reply(self, image):
        """N_GREEDY tokens of transformers', whatever they are."""
        import torch

        inputs = self.inputs(image)
        self.model.generation_config.eos_token_id = None
        with torch.no_grad():
            said = self.model.generate(**inputs, max_new_tokens=N_GREEDY, do_sample=False)
        return said[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory):
    root = tmp_path_factory.mktemp("llava")
    folders = [root / str(i) for i in range(len(KINDS))]
    models = [write_llava(*pair, seed=1) for pair in zip(KINDS, folders, strict=True)]
    parts = zip(KINDS, folders, models, convert_many(folders), strict=True)
    return {kind: Converted(folder, model, *files) for kind, folder, model, files in parts}


@pytest.fixture(params=KINDS)
def converted(request, all_kinds):
    return all_kinds[request.param]


def picture(shape=(TILE, TILE), seed=0):
    """uint8 [h, w, 3]: a photo of that size, with noise. (TILE, TILE): the encoder's own."""
    with Image.open(PHOTO) as photo:
        pixels = np.asarray(photo.convert("RGB").resize(shape[::-1]), dtype=np.int32)
    noise = np.random.default_rng(seed).integers(-40, 41, (*shape, 3))
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def same_features(features, expected):
    assert features.shape == expected.shape
    assert cosine(expected, features).min() >= 0.9999
    tolerance.check(nmse(expected, features), "cpu", "f32", "features = transformers")


@pytest.mark.parametrize("shape", SHAPES)
def test_features_are_those_of_transformers(converted, shape):
    """On images of the encoder's size, and of others: resized, cropped or cut into tiles."""
    image = picture(shape)
    same_features(converted.encode(image).embd, converted.features(image))


def test_features_of_two_images_in_a_prompt(converted):
    """OneVision makes no tiles then."""
    images = picture(SHAPES[2]), picture(SHAPES[1], seed=1)
    same_features(converted.encode(*images).embd, converted.features(*images))


def test_logits_of_an_image_prompt_are_those_of_transformers(converted):
    import torch

    image = picture(SHAPES[2])
    with torch.no_grad():
        expected = converted.model(**converted.inputs(image)).logits[0].numpy()
    logits = converted.decoder().prefill(converted.encode(image), all_logits=True)["logits"]
    tolerance.check(nmse(expected, logits), "cpu", "f32", "logits = transformers")


def test_greedy_replies_are_those_of_transformers(converted):
    image = picture()
    reply = converted.greedy_reply(image)
    seq, decoder = converted.encode(image), converted.decoder()
    tokens, _ = continuation(decoder, prefill(decoder, seq)[-1], seq.n_pos, N_GREEDY)
    assert tokens == reply
    assert len(set(reply)) > 10, "something is said"


def test_q8_0_says_the_same_but_for_near_ties(converted, tmp_path):
    """Teacher-forced: along transformers' reply."""
    core.quantise(str(converted.text), str(tmp_path / "q8_0.gguf"), "q8_0")
    image = picture()
    reply = converted.greedy_reply(image)
    exact, rounded = (
        converted.logits_along(reply, image, text) for text in (None, tmp_path / "q8_0.gguf")
    )
    assert exact.argmax(axis=1).tolist() == reply
    share = same_but_for_near_ties(exact, rounded)
    assert share >= 0.9
    print(f"Q8_0 agrees in {share:.1%} of {N_GREEDY} steps")


def renamed(folder, elsewhere, rename):
    """The checkpoint once more, its tensors under other names."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, elsewhere)
    tensors = load_file(elsewhere / "model.safetensors")
    save_file(
        {rename(name): data for name, data in tensors.items()}, elsewhere / "model.safetensors"
    )
    return elsewhere


NAMES = {
    "of transformers 4": lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
    "of modules": lambda name: (
        name.replace("language_model.lm_head", "lm_head")
        if "lm_head" in name
        else "model." + name.replace("language_model.model.", "language_model.")
    ),
}


@pytest.mark.parametrize("names", NAMES)
def test_all_names_that_checkpoints_had_make_the_same_files(names, tmp_path):
    write_llava("llava-1.5", tmp_path / "tiny")
    other = renamed(tmp_path / "tiny", tmp_path / "other" / "tiny", NAMES[names])
    for source, out in ((tmp_path / "tiny", "a"), (other, "b")):
        convert_hf(source, tmp_path / out)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def content(path):
    """Type and bytes of every tensor."""
    from gguf import GGUFReader

    return {t.name: (t.tensor_type, t.data.tobytes()) for t in GGUFReader(path).tensors}


def test_sharded_checkpoints_make_the_same_files(tmp_path):
    model = write_llava("llava-1.5", tmp_path / "tiny")
    shards = tmp_path / "shards" / "tiny"
    shutil.copytree(tmp_path / "tiny", shards)
    (shards / "model.safetensors").unlink()
    model.save_pretrained(shards, max_shard_size="200KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 3
    for source, out in ((tmp_path / "tiny", "a"), (shards, "b")):
        convert_hf(source, tmp_path / out)
    for path in (tmp_path / "a").iterdir():
        other = tmp_path / "b" / path.name
        assert read_header(path).metadata == read_header(other).metadata
        assert content(path) == content(other)
