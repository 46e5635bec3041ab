"""The tokens of converted files are those of Hugging Face's tokenizers and processors."""

import json
import shutil

import numpy as np
import pytest

from atp_cpp import _core
from atp_cpp.convert.vocabulary import NFC_KEY, chat_template, has_protobuf
from atp_cpp.models.gguf_header import read_header
from atp_cpp.prompts.prompt import ChatPrompt
from support import tiny_tokenizers
from support.convert_many import convert_many, refuse_many
from support.hard_texts import HARD_TEXTS
from support.tiny_llava_kinds import write_llava

pytestmark = pytest.mark.torch

MODEL_TYPES = {
    "llama": "llava",
    "mistral": "llava_next",
    "llama3": "llava_next",
    "qwen2_llava": "llava_onevision",
    "qwen2_vl": "qwen2_vl",
    "internvl": "internvl",
    "gemma": "gemma3",
    "smolvlm": "smolvlm",
}
QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]


def load(folder, kind):
    """The tokenizer as transformers sees it in a checkpoint of its family."""
    from transformers import AutoTokenizer

    (folder / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[kind]}))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_a_tiny_tokenizer_is_always_the_same_and_loads(kind, tmp_path):
    first = tiny_tokenizers.write_tokenizer(tmp_path / "a", kind)
    tiny_tokenizers._trained_spm.cache_clear()
    tiny_tokenizers._trained_bpe.cache_clear()
    tiny_tokenizers.write_tokenizer(tmp_path / "b", kind)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    tokenizer = load(tmp_path / "a", kind)
    assert len(tokenizer) == first.n_tokens
    assert dict(tokenizer.get_vocab()) == first.ids
    for text in tiny_tokenizers.CORPUS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)).strip() == (
            text.strip()
        )
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert "What?" in prompt


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma"])
def test_both_files_of_a_sentencepiece_tokenizer_agree(kind, tmp_path):
    from sentencepiece import SentencePieceProcessor

    tiny_tokenizers.write_tokenizer(tmp_path, kind)
    model = SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    tokenizer = load(tmp_path, kind)
    for text in tiny_tokenizers.CORPUS:
        assert tokenizer.encode(text, add_special_tokens=False) == model.encode(text), text


CASES = {
    "llama": ("llama", {}),
    "llama, tokenizer.json alone": ("llama", {"sentencepiece": False}),
    "llama, a space in front of the whole text": ("llama", {"prefix": "first"}),
    "llama, likewise, tokenizer.json alone": ("llama", {"prefix": "first", "sentencepiece": False}),
    "llama, no space in front": ("llama", {"prefix": "never"}),
    "llama, added tokens in tokenizer.json alone": ("llama", {"added_table": False}),
    "llama, no beginning": ("llama", {"bos": False}),
    "llama, several ends": ("llama", {"stops": ["</s>", "<pad>", "<image>"]}),
    "llama, white space dropped": (
        "llama",
        {"strip": [("<image>", "lstrip"), ("<image>", "rstrip"), ("</s>", "rstrip")]},
    ),
    "mistral": ("mistral", {}),
    "llama3": ("llama3", {}),
    "qwen2": ("qwen2_llava", {}),
    "smollm": ("smolvlm", {}),
    "gemma": ("gemma", {}),
    "gemma, tokenizer.json alone": ("gemma", {"sentencepiece": False}),
}


# tokenizer.json is missing: transformers needs protobuf then
MODEL_ALONE = ["llama, tokenizer.model alone"] if has_protobuf() else []


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """{case: (checkpoint, text model, projector)}."""
    root = tmp_path_factory.mktemp("tokens")
    folders = [root / f"hf-{i}" for i in range(len(CASES))]
    for folder, (kind, options) in zip(folders, CASES.values(), strict=True):
        write_llava(folder, kind, **options)
    alone = shutil.copytree(folders[0], root / "alone")
    (alone / "tokenizer.json").unlink()
    if not MODEL_ALONE:
        (message,) = refuse_many([alone])
        assert "without tokenizer.json it needs protobuf: pip install" in message
    files = convert_many([*folders, alone][: len(CASES) + len(MODEL_ALONE)])
    cases, folders = [*CASES, *MODEL_ALONE], [*folders, alone][: len(files)]
    return {case: (f, *p) for case, f, p in zip(cases, folders, files, strict=True)}


def open_engine(text, mmproj=""):
    return _core.Engine(str(text), str(mmproj), n_gpu_layers=0, n_ctx=512, self_test=False)


def as_prompted(text, chat, *, first):
    """What ChatPrompt does to a text before the engine gets it."""
    if first and text and not text.startswith((" ", "<")):
        text = " " + text
    return chat._as_tokenised(text)


@pytest.mark.parametrize("case", [*CASES, *MODEL_ALONE])
def test_every_text_has_the_same_tokens(case, converted):
    from transformers import AutoTokenizer

    folder, text, _ = converted[case]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = open_engine(text)
    chat = ChatPrompt.for_model(engine.info)
    assert engine.info.nfc == (case == "qwen2")
    assert engine.info.rstrip == (["</s>", "<image>"] if "dropped" in case else [])
    first = "whole text" in case or "likewise" in case
    # of Gemma's tokens of several spaces, "▁▁", llama.cpp has the spaces: a typed "▁" differs
    signs = [sign for sign in tokenizer.get_added_vocab() if "▁" not in sign]
    texts = [*HARD_TEXTS, *(f"a {sign} b{sign}\nc" for sign in signs)]
    if first:  # text that begins with a sign is another matter: the next test's
        texts = [text for text in texts if not text.startswith("<")]
    wrong = [
        sentence
        for sentence in texts
        if tokenizer(sentence).input_ids
        != engine.encode(as_prompted(sentence, chat, first=first), []).tokens
    ]
    assert len(texts) > 370 and not wrong
    engine.close()


QUESTIONS = (
    "What is it?",
    "Is it red?\nAnswer yes or no.",
    "two  spaces,   three",
    "Größe 12345? nai\u0308ve 你好 🙂",
    "don't </s> stop",
)


@pytest.mark.parametrize("case", [*(c for c in CASES if not c.startswith("gemma")), *MODEL_ALONE])
@pytest.mark.parametrize("n_images", [1, 2])
def test_every_prompt_has_the_tokens_of_the_processor(case, n_images, converted):
    from transformers import AutoProcessor

    folder, text, mmproj = converted[case]
    processor = AutoProcessor.from_pretrained(folder)
    engine = open_engine(text, mmproj)
    chat = ChatPrompt.for_model(engine.info)
    picture = np.random.default_rng(1).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    for question in QUESTIONS:
        parts = [{"type": "image", "image": picture.transpose(2, 0, 1)}] * n_images
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        [ids] = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        ).input_ids
        expected = [-1 if i == processor.image_token_id else i for i in ids]
        assert expected.count(-1) == 4 * n_images
        tokens = engine.encode(chat.render(question, n_images), [picture] * n_images).tokens
        assert tokens == expected, question
    engine.close()


@pytest.mark.parametrize("case", CASES)
def test_ends_rows_and_template_are_the_checkpoints(case, converted):
    from transformers import AutoTokenizer

    folder, text, _ = converted[case]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine, keys = open_engine(text), read_header(text).metadata
    assert engine.info.bos == (tokenizer.bos_token or "")
    assert engine.info.eos == tokenizer.eos_token
    assert keys["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    assert keys["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert engine.info.n_vocab == len(tokenizer) + 3, "rows beyond the tokens stay"
    assert (NFC_KEY in keys) == (case == "qwen2")
    template = chat_template(folder)
    first = CASES[case][1].get("prefix") == "first"
    assert engine.info.chat_template == ("{{ ' ' }}" if first else "") + template
    engine.close()


def test_every_token_that_ends_an_answer_is_named(converted):
    _, text, _ = converted["llama, several ends"]
    ids = json.loads((converted["llama, several ends"][0] / "generation_config.json").read_text())
    keys = read_header(text).metadata
    named = [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")]
    assert named == ids["eos_token_id"] and len(set(named)) == 3
    plain = read_header(converted["llama"][1]).metadata
    assert "tokenizer.ggml.eot_token_id" not in plain


def test_which_file_holds_the_template(tmp_path):
    from transformers import AutoProcessor

    write_llava(tmp_path, "llama")
    (tmp_path / "chat_template.jinja").unlink()
    assert chat_template(tmp_path) is None
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": "T"}))
    assert chat_template(tmp_path) is None, "the tokenizer's, not the processor's"
    for name, content in (
        ("chat_template.jinja", "from jinja"),
        ("chat_template.json", json.dumps({"chat_template": "from json"})),
    ):
        (tmp_path / name).write_text(content)
        processor = AutoProcessor.from_pretrained(tmp_path)
        assert chat_template(tmp_path) == processor.chat_template
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "from config"}))
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert chat_template(tmp_path) == processor.chat_template == "from config"
