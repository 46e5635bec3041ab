"""Prompts of the families that llama.cpp converts have the tokens that their processors make."""

import numpy as np
import pytest

from atp_cpp import _core
from atp_cpp.prompts.prompt import ChatPrompt, Turn
from support.convert_many import convert_many
from support.hf_models import write_tiny
from support.hf_processors import FAMILIES, IMAGE_TOKENS, load_processor

pytestmark = pytest.mark.torch
QUESTION = "What is nai\u0308ve?\nSay it in 12 words,  please."


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """{family: (checkpoint, text model, projector)}."""
    root = tmp_path_factory.mktemp("families")
    folders = [root / family for family in FAMILIES]
    for family, folder in zip(FAMILIES, folders, strict=True):
        write_tiny(family, folder)
    files = convert_many(folders)
    return {f.name: (f, *pair) for f, pair in zip(folders, files, strict=True)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_prompt_has_the_tokens_of_the_processor(family, converted):
    from PIL import Image

    folder, text, mmproj = converted[family]
    processor = load_processor(family, folder)
    sign = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKENS.get(family, "<|image_pad|>"))
    engine = _core.Engine(str(text), str(mmproj), n_gpu_layers=0, n_ctx=4096, self_test=False)
    chat = ChatPrompt.for_model(engine.info)
    rng = np.random.default_rng(2)
    for height, width in ((112, 112), (100, 180), (300, 200)):
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for n_images in (1, 2):
            parts = [{"type": "image", "image": Image.fromarray(picture)}] * n_images
            messages = [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]
            [ids] = processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True
            ).input_ids
            expected = [-1 if i == sign else i for i in ids]
            assert expected.count(-1) >= 16 * n_images
            tokens = engine.encode(chat.render(QUESTION, n_images), [picture] * n_images).tokens
            assert tokens == expected, (height, width, n_images)
    engine.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_conversation_has_the_tokens_of_the_processor(family, converted):
    from PIL import Image

    folder, text, mmproj = converted[family]
    processor = load_processor(family, folder)
    sign = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKENS.get(family, "<|image_pad|>"))
    engine = _core.Engine(str(text), str(mmproj), n_gpu_layers=0, n_ctx=4096, self_test=False)
    chat = ChatPrompt.for_model(engine.info)
    rng = np.random.default_rng(3)
    small, wide = (
        rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((112, 112), (100, 180))
    )
    turns = [
        Turn("user", (None, QUESTION)),
        Turn("assistant", ("A cat, and no dog.",)),
        Turn("user", ("And here?\n", None)),
        Turn("assistant", ("A dog.",)),
        Turn("user", ("Sure?",)),
    ]
    for n_turns, pictures in ((1, [small]), (3, [small, wide]), (5, [small, wide])):
        shown = iter(pictures)
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part}
                    if part is not None
                    else {"type": "image", "image": Image.fromarray(next(shown))}
                    for part in turn.parts
                ],
            }
            for turn in turns[:n_turns]
        ]
        [ids] = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        ).input_ids
        prompt = chat.render_chat(turns[:n_turns])
        tokens = engine.encode(prompt, pictures).tokens
        assert tokens == [-1 if i == sign else i for i in ids], n_turns
    engine.close()
