"""A prompt about tiled images, and its caption: the processor's tokens, transformers' reply."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from atp_cpp import Captioner, SamplingConfig
from support.convert_many import convert_many
from support.hf_llava import write_llava
from support.pictures_of_all_shapes import picture
from support.rig import EXACT

pytestmark = pytest.mark.torch

OPTIONS: dict[str, Any] = {"n_ctx": 2048, "n_threads": 1, **EXACT}
QUESTION = "What is in the image?"
ENDS = ("</s>", "<|im_end|>", "<|endoftext|>")  # llama.cpp knows these by their text
SHAPES = [[(84, 84)], [(100, 170)], [(333, 250)], [(61, 400)], [(500, 40)], [(333, 250), (61, 200)]]


@dataclass
class Both:
    """A model as transformers runs it, and as a captioner does."""

    model: Any
    processor: Any
    captioner: Captioner

    def inputs(self, images):
        """What the processor makes of a chat about the images."""
        from PIL import Image

        parts = [{"type": "image", "image": Image.fromarray(image)} for image in images]
        turn = {"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}
        return self.processor.apply_chat_template(
            [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )


def load_processor(kind, folder):
    """The processor of a checkpoint, by Pillow; OneVision's without videos, for torchvision."""
    import transformers

    name = {"llava-next": "LlavaNext", "llava-onevision": "LlavaOnevision"}[kind]
    upstream = getattr(transformers, f"{name}Processor")

    class WithoutVideos(upstream):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name == "video_processor":
                return type(None)
            return super().check_argument_for_proper_class(argument_name, argument)

    settings = json.loads((folder / "processor_config.json").read_text())
    del settings["processor_class"]
    return WithoutVideos(
        transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"),
        transformers.AutoTokenizer.from_pretrained(folder),
        chat_template=(folder / "chat_template.jinja").read_text(),
        **settings,
    )


@pytest.fixture(scope="module", params=["llava-next", "llava-onevision"])
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / request.param
    model = write_llava(request.param, folder, seed=1)
    [(text, mmproj)] = convert_many([folder])
    with Captioner(text, mmproj=mmproj, **OPTIONS) as captioner:
        yield Both(model, load_processor(request.param, folder), captioner)


def spelled(tokenizer, reply):
    """The text of token ids. Theirs makes one sign of a run of bytes that is no UTF-8."""
    named = tokenizer.convert_ids_to_tokens(reply, skip_special_tokens=True)
    pieces = [piece for piece in named if piece is not None]  # rows that no token has say nothing
    if not any(piece.startswith("<0x") for piece in pieces):
        return tokenizer.decode(reply, skip_special_tokens=True).strip()
    spelt = (
        bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.encode()
        for piece in pieces
    )
    return b"".join(spelt).decode(errors="replace").replace("\u2581", " ").strip()


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_a_caption_is_their_reply_to_the_same_chat(both, shapes):
    import torch

    images = [picture(shape) for shape in shapes]
    inputs = both.inputs(images)
    n_image_tokens = (inputs["input_ids"] == both.model.config.image_token_index).sum()
    vocabulary = both.processor.tokenizer.get_vocab()
    ends = [vocabulary[end] for end in ENDS if end in vocabulary]
    with torch.no_grad():
        out = both.model.generate(**inputs, do_sample=False, max_new_tokens=24, eos_token_id=ends)
    theirs = spelled(both.processor.tokenizer, out[0, inputs["input_ids"].shape[1] :])
    caption = both.captioner.caption(images, QUESTION, sampling=SamplingConfig(n_predict=24))
    assert caption.report.n_image_tokens == n_image_tokens
    assert caption.report.n_prompt == inputs["input_ids"].shape[1]
    cut = "\ufffd" if caption.finish_reason == "length" else ""  # a character not yet whole
    assert caption.text in (theirs, theirs.removesuffix(cut).strip())
    assert caption.text
