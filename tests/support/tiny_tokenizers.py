"""Tiny tokenizers of every kind that the families use, written as their checkpoints carry them.

Each is trained on the few lines below, always to the same files. ``KINDS`` names them;
``write_tokenizer(folder, kind)`` writes tokenizer.json, tokenizer_config.json,
special_tokens_map.json, chat_template.jinja and, where the kind has one, tokenizer.model.
"""

import io
import json
from dataclasses import dataclass
from functools import cache

from support import tiny_tokenizer_kinds as kinds
from support.tiny_templates import CHAT_TEMPLATES
from support.tiny_tokenizer_kinds import GEMMA_SIGNS, GEMMA_SPACES, PRE_TOKENIZERS, SMOL

CORPUS = (
    "USER: What is in the image? ASSISTANT: The image shows a cat that sleeps on a red chair.",
    "Describe the image. Describe this picture in detail, and tell me what you see in it.",
    "The picture shows two dogs which run along the beach while the sun is setting behind them.",
    "There are 3 apples, 12 plates and 2026 small stones on the table; the table is made of wood.",
    "It's what they've said: we'll see, I'm sure he'd come, and you're welcome. DON'T shout!",
    "How many people are there in the photo? There are 7 people, 4 women and 3 men.",
    "a small green circle and a big blue square stand beside the white triangle",
    "user assistant system model User Assistant You are a helpful assistant. [INST] [/INST]",
    "    def area(width, height):\n        return width * height  # 100.5%\n\n\n",
    "Das schöne Bild zeigt eine Straße in Köln. Où est la bibliothèque? Está aquí, señor.",
    "На картинке изображена кошка. 图片里有一只猫和两只狗。 この写真には猫がいます。 그림",
    "Smileys 🙂🚀🦙 and signs — “quotes”, … dots, 5 × 4 = 20, €9.99, $1,000, x² + y².",
)


@dataclass(frozen=True)
class TinyTokenizer:
    """What a model needs to know about its tokenizer."""

    kind: str
    ids: dict[str, int]  # every token

    @property
    def n_tokens(self) -> int:
        return max(self.ids.values()) + 1


KINDS = tuple(kinds.KINDS)


def write_tokenizer(
    folder, kind, *, sentencepiece=True, prefix="every", added_table=True, bos=True, strip=()
):
    """Writes the files of one tokenizer.

    Args:
        folder: where; made if missing.
        kind: one of KINDS.
        sentencepiece: whether tokenizer.model and the added_tokens_decoder that goes with it are
            written, where the kind has them; checkpoints that transformers 5 saved have neither.
        prefix: llama and mistral only: "every" puts a space in front of every stretch of text (the
            tokenizers' "legacy" form), "first" only in front of the whole text, "never" nowhere.
        added_table: whether tokenizer_config.json lists the added tokens.
        bos: llama and mistral only: false overrides what tokenizer.json puts in front of text.
        strip: pairs (token, "lstrip" or "rstrip"): white space beside it is a part of it.

    Returns:
        The TinyTokenizer.
    """
    made = kinds.KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    if made.form in ("llama", "gemma"):
        model, pieces = _trained_spm(made.form)
        content = _spm_json(made, pieces, prefix)
        if sentencepiece:
            (folder / "tokenizer.model").write_bytes(model)
    else:
        content = json.loads(_trained_bpe(made.form))
        content["added_tokens"] = []
    added = _add_tokens(content, made, pieces if made.form in ("llama", "gemma") else ())
    for token in [*content["added_tokens"], *added.values()]:
        token.update({side: True for name, side in strip if name == token["content"]})
    _write(folder / "tokenizer.json", content)
    config = _config(made, prefix)
    if not bos:
        config["add_bos_token"] = False
    if sentencepiece and added_table:
        config["added_tokens_decoder"] = added
    _write(folder / "tokenizer_config.json", config)
    ends = {"bos": made.bos, "eos": made.eos, "pad": made.pad, "unk": made.unk}
    named = {f"{name}_token": token for name, token in ends.items() if token}
    _write(folder / "special_tokens_map.json", named)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATES[kind], encoding="utf-8")
    ids = {**content["model"]["vocab"], **{t["content"]: t["id"] for t in content["added_tokens"]}}
    return TinyTokenizer(kind, ids)


def _write(path, content):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _config(made, prefix):
    config = {
        "tokenizer_class": made.tokenizer_class,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "bos_token": made.bos,
        "eos_token": made.eos,
        "pad_token": made.pad,
        "padding_side": "left",
        "extra_special_tokens": made.attributes,
    }
    if made.unk:
        config["unk_token"] = made.unk
    if made.form == "llama":
        config |= {"add_bos_token": True, "add_eos_token": False, "legacy": prefix == "every"}
        if prefix == "never":
            config["add_prefix_space"] = False
    elif made.form == "gemma":
        config |= {"add_bos_token": True, "add_eos_token": False, "sp_model_kwargs": None}
    else:
        config |= {"add_prefix_space": False}
    return config


@cache
def _trained_spm(form):
    """A sentencepiece model and its pieces [(piece, score, kind)]."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    ids = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1, "vocab_size": 440}
    if form == "gemma":
        ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "vocab_size": 450}
        ids |= {"bos_piece": "<bos>", "eos_piece": "<eos>"}
        ids |= {"user_defined_symbols": [*GEMMA_SIGNS, *GEMMA_SPACES]}
    file = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=file,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=form == "llama",
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.98,
        num_threads=1,
        minloglevel=2,
        **ids,
    )
    model = SentencePieceProcessor(model_proto=file.getvalue())
    pieces = []
    for i in range(model.vocab_size()):
        ordinary = not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))
        ordinary = ordinary and model.id_to_piece(i) not in GEMMA_SIGNS
        pieces.append((model.id_to_piece(i), model.get_score(i), ordinary))
    return file.getvalue(), pieces


def _merges(pieces):
    """Which pairs make which piece, in the order in which sentencepiece joins them."""
    ids = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    usable = {piece for piece, _, ordinary in pieces if ordinary}
    merges = []
    for piece, score, ordinary in pieces:
        for at in range(1, len(piece)) if ordinary else ():
            left, right = piece[:at], piece[at:]
            if left in usable and right in usable:
                merges.append((-score, ids[piece], ids[left], ids[right], [left, right]))
    return [pair for *_, pair in sorted(merges)]


def _spm_json(made, pieces, prefix):
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer, pre_tokenizer = replace, None
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if made.form == "gemma":
        pre_tokenizer = {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        }
    elif prefix == "every":
        prepend = {"type": "Prepend", "prepend": "▁"}
        normalizer = {"type": "Sequence", "normalizers": [prepend, replace]}
    else:
        normalizer = None
        pre_tokenizer = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prefix}
        pre_tokenizer["split"] = False
    if made.form == "llama" and prefix != "never":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _with_bos(made.bos, [p for p, _, _ in pieces].index(made.bos)),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, (piece, _, _) in enumerate(pieces)},
            "merges": _merges(pieces),
        },
    }


def _with_bos(bos, bos_id):
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    second = {"SpecialToken": {"id": bos, "type_id": 1}}
    a, b = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, a],
        "pair": [first, a, second, b],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


@cache
def _trained_bpe(form):
    """tokenizer.json of a byte-level BPE without its added tokens."""
    from tokenizers import Tokenizer, decoders, models, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    content = json.loads(tokenizer.to_str())
    content["pre_tokenizer"] = PRE_TOKENIZERS[form]
    content["normalizer"] = {"type": "NFC"} if form == "qwen2" else None
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=1,
        show_progress=False,
        special_tokens=list(SMOL) if form == "smollm" else [],
        initial_alphabet=sorted(_byte_alphabet()),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    content = json.loads(tokenizer.to_str())
    if form == "llama3":
        content["model"]["ignore_merges"] = True
    return json.dumps(content)


def _byte_alphabet():
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet()


def _add_tokens(content, made, pieces):
    """Adds the special and the added tokens; returns tokenizer_config's table of them."""
    vocab = content["model"]["vocab"]
    n_tokens = len(vocab)
    inside = [piece for i, (piece, _, ordinary) in enumerate(pieces) if not ordinary]
    inside = [piece for piece in inside if not piece.startswith("<0x")]
    if made.form == "smollm":
        inside = list(SMOL)
    if made.form == "gemma":
        inside += GEMMA_SPACES
    tokens = [(vocab[token], token) for token in inside]
    tokens += [(n_tokens + i, token) for i, token in enumerate(made.added)]
    table = {}
    for token_id, token in sorted(tokens):
        special = token not in GEMMA_SPACES
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added = {"content": token, **flags, "special": special}
        content["added_tokens"].append({"id": token_id, **added})
        table[str(token_id)] = added
    if made.form == "llama3":
        bos_id = next(i for i, token in tokens if token == made.bos)
        both = [content["post_processor"], _with_bos(made.bos, bos_id)]
        content["post_processor"] = {"type": "Sequence", "processors": both}
    return table
