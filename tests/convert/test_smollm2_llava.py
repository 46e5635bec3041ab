"""A real language model through `convert`: SmolLM2-135M in a LLaVA, against transformers in F32."""

from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from PIL import Image

from atp_cpp import _core as core
from atp_cpp.convert.run import convert_hf
from support.rig import EXACT, nmse
from support.smollm2_llava import IMAGE, N_VOCAB, PATCH, SIDE, write_smollm2_llava
from support.tolerance import check

pytestmark = [pytest.mark.smollm2, pytest.mark.torch]

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "coffee.jpg"
QUESTION = "Write a story about a lighthouse keeper who found a map in 1912."
N_STEPS = 64
TEXTS = (
    "It's 12345 o'clock: 3.14159 = \u03c0?\n\n\tdef f(x):\n\t\treturn x**2  # fin",
    "Straße, naïve café, 画像も, मूल, \U0001f600\U0001f3fd trailing   ",
    "<|im_start|>system\nYou are<|im_end|> not <|endoftext|>",
)


@pytest.fixture(scope="module")
def picture():
    """A photo, uint8 [56, 56, 3]: as large as the tower, so that nobody resizes it again."""
    with Image.open(PHOTO) as photo:
        return np.asarray(photo.convert("RGB").resize((PATCH * SIDE, PATCH * SIDE)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoint") / "smol-llava"


@pytest.fixture(scope="module")
def weights(folder):
    """What the checkpoint's text model was made of."""
    return write_smollm2_llava(folder)


@pytest.fixture(scope="module")
def theirs(folder, weights, picture):
    """What transformers says: tokens, features, logits of the prompt and a story of 64 tokens."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    inputs = processor(images=Image.fromarray(picture), text=prompt, return_tensors="pt")
    with torch.no_grad():
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
        whole = model.generate(**inputs, max_new_tokens=N_STEPS, do_sample=False)
        n_prompt = inputs["input_ids"].shape[1]
        pixels = inputs["pixel_values"]
        logits = model(input_ids=whole, pixel_values=pixels).logits[0].numpy()
    return SimpleNamespace(
        prompt=prompt,
        n_prompt=n_prompt,
        tokens=whole[0].tolist(),
        features=features.numpy(),
        logits=logits,
        texts=[processor.tokenizer(text).input_ids for text in TEXTS],
    )


@pytest.fixture(scope="module")
def converted(folder, weights, tmp_path_factory):
    """The two files in F32, and the text model once more in Q8_0 and Q4_K_M."""
    out = tmp_path_factory.mktemp("converted")
    convert_hf(folder, out, outtype="f32", mmproj_outtype="f32")
    names = {path.name for path in out.iterdir()}
    assert names == {"smol-llava-f32.gguf", "mmproj-smol-llava-f32.gguf"}
    files = {"f32": out / "smol-llava-f32.gguf", "mmproj": out / "mmproj-smol-llava-f32.gguf"}
    for kind in ("q8_0", "q4_k_m"):
        files[kind] = out / f"{kind}.gguf"
        core.quantise(str(files["f32"]), str(files[kind]), kind)
    return files


@pytest.fixture(scope="module")
def engine(converted):
    paths = (str(converted["f32"]), str(converted["mmproj"]))
    made = core.Engine(*paths, n_ctx=512, self_test=False, **EXACT)
    yield made
    made.close()


def encode(engine, theirs, picture):
    return engine.encode(theirs.prompt.replace("<image>", engine.info.media_marker), [picture])


def test_every_weight_survives(converted, weights):
    after = {t.name: t for t in gguf.GGUFReader(converted["f32"]).tensors}
    assert set(after) == set(weights)
    for name, t in after.items():
        assert t.tensor_type == gguf.GGMLQuantizationType.F32
        np.testing.assert_array_equal(t.data[: len(weights[name])], weights[name], name)
    assert len(after["token_embd.weight"].data) > N_VOCAB
    assert not after["token_embd.weight"].data[N_VOCAB:].any(), "padding"


def test_prompt_tokens_are_those_of_the_processor(engine, theirs, picture):
    seq = encode(engine, theirs, picture)
    expected = [-1 if token == IMAGE else token for token in theirs.tokens[: theirs.n_prompt]]
    assert seq.tokens == expected
    assert expected.count(-1) == SIDE * SIDE
    for text, tokens in zip(TEXTS, theirs.texts, strict=True):
        assert engine.encode(text, []).tokens == tokens


def test_image_features(engine, theirs, picture):
    error = nmse(theirs.features, encode(engine, theirs, picture).embd)
    check(error, "cpu", "f32", "features = transformers")


def forced(path, seq, theirs, **options):
    """Logits of the prompt and the story's first 63 tokens: [n_rows, n_vocab]."""
    decoder = core.Decoder(core.ModelParams(str(path), n_ctx=512, **options))
    seq.add_text(theirs.tokens[theirs.n_prompt : -1])
    return decoder.prefill(seq, all_logits=True)["logits"]


def test_logits_of_an_image_prompt(converted, engine, theirs, picture):
    logits = forced(converted["f32"], encode(engine, theirs, picture), theirs, **EXACT)
    error = nmse(theirs.logits[: len(logits)], logits)
    check(error, "cpu", "f32, deep", "logits = transformers")


def test_the_story_goes_on_alike(engine, theirs, picture):
    prompt = theirs.prompt.replace("<image>", engine.info.media_marker)
    result = engine.generate(prompt, [picture], n_predict=N_STEPS)
    assert result.tokens == theirs.tokens[theirs.n_prompt :]
    assert len(result.tokens) == N_STEPS
    assert "lighthouse" in result.text or "sea" in result.text.lower(), result.text


@pytest.mark.parametrize(("kind", "share"), [("q8_0", 0.95), ("q4_k_m", 0.8)])
def test_the_best_token_of_quantised_weights(converted, engine, theirs, picture, kind, share):
    """Each of 64 steps is asked after the story so far."""
    logits = forced(converted[kind], encode(engine, theirs, picture), theirs)
    best = logits[theirs.n_prompt - 1 :].argmax(axis=1)
    assert len(best) == N_STEPS
    alike = float((best == theirs.tokens[theirs.n_prompt :]).mean())
    print(f"{kind}: {alike:.3f} of {N_STEPS} best tokens are those of F32")
    assert alike >= share
