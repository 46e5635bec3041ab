"""Prompts of the families that llama.cpp converts have the tokens that their processors make."""

import numpy as np
import pytest

from atp_cpp import _core
from atp_cpp.prompts import ChatPrompt
from convert_many import convert_many
from hf_models import write_tiny
from hf_processors import FAMILIES, IMAGE_TOKENS, load_processor

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
