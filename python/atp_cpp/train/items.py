r"""Training data as files -> items: an image and the questions about it.

Two formats, told apart by what is in the file:

* JSON lines ``{"image", "question", "answer", "kind"}``, what ``atp-cpp eval`` reads; all rows of
  one image become one item.
* LLaVA's: a list (or lines) of ``{"id", "image", "conversations": [{"from": "human", "value":
  "<image>\n…"}, {"from": "gpt", "value": …}, …]}``. Entries without an image, or with more than
  one, are left out and counted.

Each question with its answer is a sample of its own, together with the image: at inference the
image tokens are chosen for one question, so that is what is learned. Later turns of a conversation
therefore come without the earlier ones (our decision).
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atp_cpp.errors import AtpError
from atp_cpp.evaluation.evaluate import load_questions

IMAGE_SIGN = "<image>"  # how LLaVA's files mark the image's place in the text

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """One question, its answer and what kind of question it is ("all" where the file has none)."""

    question: str
    answer: str
    kind: str = "all"


@dataclass(frozen=True, slots=True)
class Item:
    """Images (one, today) and the questions about them."""

    images: tuple[Path, ...]
    turns: tuple[Turn, ...]


def load_items(path: Path, image_dir: Path | None = None) -> list[Item]:
    """Reads a file of training data.

    Args:
        path: of either format.
        image_dir: folder that relative image paths start from; the file's own if None.

    Returns:
        At least one item, in file order. Whether the images exist is not looked at.

    Raises:
        AtpError: naming file and entry, and what is wrong with it.
    """
    root = image_dir if image_dir is not None else path.parent
    rows = _llava_rows(path)
    items = list(_question_items(path, root)) if rows is None else _llava_items(rows, path, root)
    if not items:
        raise AtpError(f"{path}: holds no question about an image")
    return items


def _question_items(path: Path, root: Path) -> Iterator[Item]:
    turns: dict[str, list[Turn]] = {}
    for row in load_questions(path):
        turns.setdefault(row.image, []).append(Turn(row.question, row.answer, row.kind))
    for image, asked in turns.items():
        yield Item((root / image,), tuple(asked))


def _llava_rows(path: Path) -> list[tuple[str, Any]] | None:
    """(where, entry) of each entry; None if the file is of the other format."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise AtpError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise AtpError(f"{path}: expected JSON in UTF-8: {error}") from error
    lines = [(i, line) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if lines and not lines[0][1].lstrip().startswith("["):
        try:
            first = json.loads(lines[0][1])
        except ValueError:
            return None
        if not isinstance(first, dict) or "conversations" not in first:
            return None
        return [(f"{path}:{i}", _json(line, f"{path}:{i}")) for i, line in lines]
    entries = _json(text, str(path)) if lines else []
    return [(f"{path}: entry {i}", entry) for i, entry in enumerate(entries, start=1)]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise AtpError(f"{where}: not JSON: {error}") from error


def _llava_items(rows: Iterable[tuple[str, Any]], path: Path, root: Path) -> list[Item]:
    items: list[Item] = []
    left_out: Counter[str] = Counter()
    for where, entry in rows:
        if not isinstance(entry, dict):
            raise AtpError(f"{where}: expected an object with image and conversations")
        if "id" in entry:
            where = f"{where} (id {entry['id']})"
        image = entry.get("image")
        if isinstance(image, list) and len(image) == 1:
            image = image[0]
        if not image:
            left_out["without an image"] += 1
        elif isinstance(image, list):
            left_out["with more than one image"] += 1
        elif not isinstance(image, str):
            raise AtpError(f"{where}: expected text in image, got {type(image).__name__}")
        else:
            items.append(Item((root / image,), _turns(entry.get("conversations"), where)))
    for why, count in left_out.items():
        _log.warning("%s: %d of the entries left out, %s", path, count, why)
    return items


def _turns(conversation: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(conversation, list) or not conversation or len(conversation) % 2:
        raise AtpError(
            f"{where}: expected conversations to be a list of questions and answers in turn"
        )
    texts: list[str] = []
    for number, said in enumerate(conversation):
        speaker = ("human", "gpt")[number % 2]
        if not isinstance(said, dict) or said.get("from") != speaker:
            got = said.get("from") if isinstance(said, dict) else type(said).__name__
            raise AtpError(f"{where}: expected turn {number + 1} to be from {speaker}, got {got}")
        if not isinstance(said.get("value"), str):
            raise AtpError(f"{where}: expected text in the value of turn {number + 1}")
        texts.append(said["value"])
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return tuple(Turn(question.replace(IMAGE_SIGN, "").strip(), a.strip()) for question, a in pairs)
