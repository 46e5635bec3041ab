"""What Hugging Face's processor does to a prompt, carried into the text model's file.

Runs in the child process. llama.cpp's converter writes the vocabulary; :func:`exact` mends where
the tokens of its file would be others than those of the checkpoint's processor:

* byte-level BPE tokenizers whose hash it does not know (:mod:`atp_cpp.convert.pre_tokenizer`);
* SentencePiece vocabularies without tokenizer.model (:mod:`atp_cpp.convert.spm_json`), or whose
  added tokens stand in tokenizer.json only;
* beginning and end of text: what the tokenizer adds, not what its configuration says of it;
* the tokens that end an answer, of which llama.cpp knows some by their text only;
* a space in front of text: in front of all of it, or of its beginning only;
* the chat template: of the files that may hold one, the one that the processor reads, with what
  the processor itself writes around an image;
* Unicode's NFC, and white space beside some tokens dropped, which some tokenizers do and llama.cpp
  does not: keys ``NFC_KEY`` and ``STRIP_KEYS``, for :class:`atp_cpp.prompts.prompt.ChatPrompt`.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atp_cpp.convert import spm_json
from atp_cpp.convert.pre_tokenizer import detect_pre, needs_nfc
from atp_cpp.errors import ConvertError

if TYPE_CHECKING:
    from conversion.base import ModelBase

NFC_KEY = "atp.tokenizer.nfc"
STRIP_KEYS = {"lstrip": "atp.tokenizer.lstrip", "rstrip": "atp.tokenizer.rstrip"}
# config.model_type -> the tokenizer's name for the sign of an image, and what its processor writes
# on both sides of it
_AROUND_IMAGES = {"gemma3": ("boi_token", "\n\n")}
# tokens that end an answer whatever the file says (llama-vocab.cpp)
_KNOWN_STOPS = frozenset(
    [
        "</s>",
        "<eos>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
    ]
)
_TEMPLATE_KEY = "tokenizer.chat_template"
_TOKENS = "tokenizer.ggml."

_log = logging.getLogger(__name__)


def exact(upstream: type[ModelBase], *, checked: bool) -> type[ModelBase]:
    """llama.cpp's class for a text model, with the checkpoint's own tokens and template.

    Args:
        upstream: the class.
        checked: see :func:`carry`.
    """

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        known: str | None = None
        with suppress(NotImplementedError):
            known = upstream.get_vocab_base_pre(self, tokenizer)
        return detect_pre(self.dir_model, known)

    def set_vocab(self: Any) -> None:
        content = _json(self.dir_model / "tokenizer.json")
        spm_json.check_rows(content, self.find_hparam(["vocab_size"], optional=True))
        if (
            spm_json.is_sentencepiece(content)
            and not (self.dir_model / "tokenizer.model").is_file()
        ):
            _write_sentencepiece(self, content)
        else:
            upstream.set_vocab(self)
        carry(self.gguf_writer, self.dir_model, checked=checked)

    members = {
        "model_arch": upstream.model_arch,
        "get_vocab_base_pre": get_vocab_base_pre,
        "set_vocab": set_vocab,
    }
    return type(upstream.__name__, (upstream,), members)


def carry(writer: Any, folder: Path, *, checked: bool) -> None:
    """Mends the tokenizer's keys of a file that is about to be written.

    Args:
        writer: llama.cpp's GGUFWriter, the vocabulary in it.
        folder: the checkpoint.
        checked: of a family whose prompts are those of transformers; of another one a tokenizer
            that transformers cannot load stays as llama.cpp wrote it, and a note says so.

    Raises:
        ConvertError: of a checked family, transformers cannot load the tokenizer.
    """
    _add_stops(writer, folder)
    try:
        tokenizer = _tokenizer(folder)
    except ConvertError as error:
        if checked:
            raise
        _log.warning("%s; its tokens and prompts are llama.cpp's own, unchecked", error)
        _put_template(writer, chat_template(folder))
        return
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    keys = writer.kv_data[0]
    sentencepiece = keys[f"{_TOKENS}model"].value == "llama"
    if sentencepiece:
        spm_json.check_cuts(content)
        _add_tokens(keys, content)
    _add_ends(writer, tokenizer)
    template = chat_template(folder) or _text(tokenizer.chat_template)
    around = _AROUND_IMAGES.get(_json(folder / "config.json").get("model_type", ""))
    if template and around:
        template = with_surroundings(template, getattr(tokenizer, around[0]), around[1])
    if sentencepiece:
        scheme = prefix_scheme(content)
        _drop(keys, f"{_TOKENS}add_space_prefix")
        writer.add_add_space_prefix(scheme in ("every", "always"))
        if scheme == "first" and template and _starts_with_text(tokenizer, template):
            template = "{{ ' ' }}" + template
    _put_template(writer, template)
    if needs_nfc(content):
        writer.add_bool(NFC_KEY, True)
    for side, key in STRIP_KEYS.items():
        if tokens := [t["content"] for t in content.get("added_tokens", []) if t[side]]:
            writer.add_string(key, "\n".join(tokens))


def chat_template(folder: Path) -> str | None:
    """The chat template that a processor reads, of all files that may hold one.

    transformers 5: processor_config.json, then chat_template.json, then chat_template.jinja. What
    tokenizer_config.json says is the tokenizer's, not the processor's, and comes last.
    """
    legacy = _json(folder / "chat_template.json").get("chat_template")
    jinja = folder / "chat_template.jinja"
    return (
        _text(_json(folder / "processor_config.json").get("chat_template"))
        or _text(legacy)
        or (jinja.read_text(encoding="utf-8") if jinja.is_file() else None)
    )


def prefix_scheme(content: dict[str, Any]) -> str:
    """Where a SentencePiece tokenizer puts a space in front of text.

    Args:
        content: what is in tokenizer.json.

    Returns:
        "every": in front of each stretch of text between special tokens. "always": in front of each
        stretch between special tokens that does not begin with a space. "first": in front of the
        whole text if it does not begin with a space. "never": nowhere.
    """
    for part in spm_json.parts(content.get("normalizer"), "normalizers"):
        if part.get("type") == "Prepend":
            return "every"
    for part in spm_json.parts(content.get("pre_tokenizer"), "pretokenizers"):
        if part.get("type") == "Metaspace":
            return str(part.get("prepend_scheme", "always"))
    return "never"


def with_surroundings(template: str, sign: str, around: str) -> str:
    """A template that writes ``around`` on both sides of every image.

    Args:
        template: Jinja source; without the sign it stays as it is.
        sign: what it writes for an image, as a string of its own.
        around: line breaks.

    Raises:
        NotImplementedError: the sign is part of something else.
    """
    space = around.replace("\n", r"\n")
    for quote in "'\"":
        whole = f"{quote}{sign}{quote}"
        template = template.replace(whole, f"{quote}{space}{sign}{space}{quote}")
    if template.count(sign) != template.count(space + sign + space):
        raise NotImplementedError(
            f"the chat template has {sign!r} as part of something else; write it as a string of "
            f"its own, which the processor surrounds with {around!r}"
        )
    return template


def _write_sentencepiece(model: Any, content: dict[str, Any]) -> None:
    import gguf

    n_tokens = model.find_hparam(["vocab_size"])
    words = spm_json.vocabulary(content, n_tokens)
    writer = model.gguf_writer
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words.tokens)
    writer.add_token_scores(words.scores)
    writer.add_token_types(words.types)
    gguf.SpecialVocab(model.dir_model, n_vocab=n_tokens).add_to_gguf(writer)


def _add_tokens(keys: Any, content: dict[str, Any]) -> None:
    """Added tokens that tokenizer.json alone knows; they are matched before all others."""
    lists = (keys[f"{_TOKENS}{name}"].value for name in ("tokens", "scores", "token_type"))
    words = spm_json.Vocabulary(*map(list, lists))
    unknown = content["model"].get("unk_token")
    for token in content.get("added_tokens", []):
        known = token["id"] >= len(words.types) or token["content"] == unknown
        if not known and words.types[token["id"]] in (spm_json.UNUSED, spm_json.NORMAL):
            spm_json.put_added(words, token)
    for name, values in zip(
        ("tokens", "scores", "token_type"), (words.tokens, words.scores, words.types), strict=True
    ):
        keys[f"{_TOKENS}{name}"].value = values


def _add_ends(writer: Any, tokenizer: Any) -> None:
    """Whether the tokenizer puts its first and last token around a text."""
    ids = tokenizer("").input_ids
    for name, at in (("bos", 0), ("eos", -1)):
        end = getattr(tokenizer, f"{name}_token_id")
        adds = bool(ids) and end is not None and ids[at] == end
        if name == "eos" and len(ids) == 1 and end == tokenizer.bos_token_id:
            adds = False  # one token for both: it stands in front
        _drop(writer.kv_data[0], f"{_TOKENS}add_{name}_token")
        getattr(writer, f"add_add_{name}_token")(adds)


def _put_template(writer: Any, template: str | None) -> None:
    if template:
        _drop(writer.kv_data[0], _TEMPLATE_KEY)
        writer.add_chat_template(template)


def _add_stops(writer: Any, folder: Path) -> None:
    """All tokens at which transformers' generate stops; a file has room for three."""
    given = _json(folder / "generation_config.json").get("eos_token_id")
    keys = writer.kv_data[0]
    tokens = keys[f"{_TOKENS}tokens"].value
    stops = [i for i in (given if isinstance(given, list) else [given]) if isinstance(i, int)]
    named = [f"{_TOKENS}{name}_token_id" for name in ("eos", "eot", "eom")]
    known = {keys[name].value for name in named if name in keys}
    free = [name for name in named if name not in keys]
    for stop in stops:
        text = tokens[stop] if stop < len(tokens) else ""
        text = text.decode() if isinstance(text, bytes) else text
        if stop in known or stop >= len(tokens) or text in _KNOWN_STOPS:
            continue
        if not free:
            raise NotImplementedError(
                f"generation_config.json ends answers at tokens {stops}; a GGUF file has room for "
                "three that llama.cpp does not know by their text: name fewer"
            )
        writer.add_uint32(free.pop(0), stop)
        known.add(stop)


def _starts_with_text(tokenizer: Any, template: str) -> bool:
    """Whether a prompt begins with words, and not with a special token or a space."""
    parts = [{"type": "image"}, {"type": "text", "text": "x"}]
    prompt = ""
    for content in (parts, "x"):
        with suppress(Exception):  # a template is a program: it may fail in any way
            messages = [{"role": "user", "content": content}]
            prompt = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            break
    specials = tuple(token.content for token in tokenizer.added_tokens_decoder.values())
    return bool(prompt) and not prompt.startswith((*specials, " ", "▁"))


def _tokenizer(folder: Path) -> Any:
    """The tokenizer as transformers loads it.

    Raises:
        ConvertError: it cannot, or it is a slow one.
    """
    from transformers import AutoTokenizer

    try:
        # it must not ask on stdin whether to run the checkpoint's code
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # it asks for packages or code of the checkpoint's own
        reason = " ".join(str(error).split()) or type(error).__name__
        if not (folder / "tokenizer.json").is_file() and not has_protobuf():
            # what transformers says then is of the last thing that it tried
            reason = "without tokenizer.json it needs protobuf: pip install 'atp_cpp[convert]'"
        raise ConvertError(
            f"transformers cannot load the tokenizer ({reason[:300]}); get the tokenizer's files "
            "again, or install what it asks for"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ConvertError(
            f"the tokenizer, {type(tokenizer).__name__}, has no fast form; save the checkpoint "
            "with one (tokenizer.json)"
        )
    return tokenizer


def has_protobuf() -> bool:
    """Whether transformers can read tokenizer.model."""
    try:
        return find_spec("google.protobuf") is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def _drop(keys: Any, key: str) -> None:
    """Makes room for a key, which the writer would warn of."""
    keys.pop(key, None)


def _text(template: Any) -> str | None:
    """The default of several templates."""
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) and template else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
