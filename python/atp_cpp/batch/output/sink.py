"""Writes the rows of a run to one file, to text files, or both; finds what is still to do.

An image's text is written before the image's rows. So an image that has all its rows also has its
text, and every other image is captioned again, whatever ended the process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from atp_cpp.batch.load.opening import hash_of, stamp_of
from atp_cpp.batch.output.resume import Done, file_key, key_of
from atp_cpp.batch.output.rows import ERROR, OK, Row
from atp_cpp.batch.output.rows_file import RowsFile
from atp_cpp.batch.output.text_files import TextFileError, TextFiles
from atp_cpp.batch.source.item import Item

__all__ = ["Sink"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Open:
    """An image that still waits for some of its rows."""

    item: Item
    rows: dict[str, Row] = field(default_factory=dict)  # by prompt


class Sink:
    """Takes in the rows of a run.

    `pending` may be drawn in another thread than the one that calls `put` and `close`. The RowsFile
    and the TextFiles must not be used elsewhere until `close`.

    Args:
        rows: the file of rows, entered, if rows are kept.
        texts: the text files, if images get texts.
        config_hash: hash of this run's configuration; see ``run_key.config_hash``.

    Attributes:
        n_skipped: images passed over because they were done before this run.
        n_skipped_failed: images among n_skipped that had failed.
        n_with_text: images passed over because they have a text file.
        n_replaced: images captioned again because another file has their name now.
        n_repeated: images passed over because this run had met them already.
        n_conflicts: images passed over because another image has the same custom_id. A warning
            names each. They get no row: nobody could tell it from the other image's row.
    """

    def __init__(
        self, *, rows: RowsFile | None = None, texts: TextFiles | None = None, config_hash: str = ""
    ) -> None:
        self.n_skipped = 0
        self.n_skipped_failed = 0
        self.n_with_text = 0
        self.n_replaced = 0
        self.n_repeated = 0
        self.n_conflicts = 0
        self._rows = rows
        self._texts = texts
        self._config_hash = config_hash
        self._open: dict[str, _Open] = {}
        self._claims = Done()  # the keys of this run; used where there is no file of rows
        self._images: dict[int, int] = {}  # hash of a custom_id -> hash of its image

    def pending(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items that are still to do, each with the prompts that are still to do.

        An image that gets a text is captioned for all of its prompts or for none. An image whose
        text cannot be written comes out with an error. The iterator is lazy. Call this once, and
        `put` a row for every prompt of every item that it gives.

        Raises:
            AtpError: an image without a file, where texts are written.
        """
        for item in items:
            if self._conflicts(item):
                continue
            todo = replace(item, prompts=self._claim(item))
            if not todo.prompts:
                continue
            if self._texts is not None:
                if not item.error:
                    todo = self._with_text(todo, self._texts)
                if not todo.prompts:
                    continue
                self._open[item.custom_id] = _Open(todo)
            yield todo

    def put(self, row: Row) -> list[Row]:
        """Takes in one row of an item that came out of `pending`.

        Returns:
            The rows that were recorded. Without texts: this row. With texts: nothing until all rows
            of the image have come, then all of them; they are errors if the text cannot be written.

        Raises:
            WriteError: nothing can be written any more; end the run.
        """
        if self._texts is None or row.custom_id not in self._open:
            return self._append([row])
        image = self._open[row.custom_id]
        image.rows[row.prompt] = row
        if len(image.rows) < len(image.item.prompts):
            return []
        del self._open[row.custom_id]
        rows = [image.rows[prompt] for prompt in image.item.prompts]
        if all(row.status == OK for row in rows):
            try:
                self._texts.write(image.item.source, [row.caption for row in rows])
            except TextFileError as error:
                rows = [_failed(row, str(error)) for row in rows]
        return self._append(rows)

    def close(self) -> list[Row]:
        """Records the rows of images that did not get all their rows. Call it when the run ends.

        These rows are kept without a text. A later run captions these images again.
        """
        rows = [row for image in self._open.values() for row in image.rows.values()]
        self._open.clear()
        return self._append(rows)

    def _conflicts(self, item: Item) -> bool:
        """Whether another image has this id; an id that is the image's name cannot conflict."""
        if item.custom_id == item.image:
            return False
        image = hash(item.image)
        if self._images.setdefault(hash(item.custom_id), image) == image:
            return False
        self.n_conflicts += 1
        log.warning(
            "%s: passed over, since its custom_id %r is that of another image; give it its own",
            *(item.image, item.custom_id),
        )
        return True

    def _claim(self, item: Item) -> tuple[str, ...]:
        """The prompts of an image that this run takes on."""
        prompts = tuple(dict.fromkeys(item.prompts))
        keys = [(item.custom_id, prompt, self._config_hash) for prompt in prompts]
        if self._rows is None:
            claimed = [self._claims.claim(key_of(*key)) for key in keys]
        else:
            self._forget_replaced(item, keys, self._rows)
            if all(self._rows.done_earlier(*key) for key in keys):
                self.n_skipped += 1
                self.n_skipped_failed += any(self._rows.failed_earlier(*key) for key in keys)
                return ()
            claimed = [self._rows.claim(*key) for key in keys]
        if not any(claimed):
            self.n_repeated += 1
            return ()
        if self._texts is not None:
            return prompts
        return tuple(p for p, is_claimed in zip(prompts, claimed, strict=True) if is_claimed)

    def _forget_replaced(
        self, item: Item, keys: list[tuple[str, str, str]], rows: RowsFile
    ) -> None:
        """Makes earlier rows of an image count no more if its file has other content now.

        Size and time are compared first. The file is read only if size or time differ.
        """
        known = {key: of_file for key in keys if (of_file := rows.file_of(*key))}
        if item.error or not known:
            return
        stamp = stamp_of(item.source)
        as_before = file_key(stamp, "?")[:8] if stamp else b""
        others = {key: of_file for key, of_file in known.items() if of_file[:8] != as_before}
        sha256 = hash_of(item.source, item.image) if others else ""
        if not sha256:
            return
        content = file_key("", sha256)[8:]
        replaced = [key for key, of_file in others.items() if of_file[8:] != content]
        for key in replaced:
            rows.forget(*key)
        if replaced:
            self.n_replaced += 1
            log.warning(
                "%s: another picture has this name since it was captioned; it is captioned anew%s",
                *(item.image, "" if self._texts is None else self._texts.words_of_old()),
            )

    def _with_text(self, item: Item, texts: TextFiles) -> Item:
        """The item: no prompts if its text is done, an error if no text can be written."""
        try:
            wanted = texts.wanted(item.source)
        except TextFileError as error:
            return replace(item, error=str(error))
        if wanted or self._rows is not None:
            return item
        self.n_with_text += 1
        return replace(item, prompts=())

    def _append(self, rows: list[Row]) -> list[Row]:
        if self._rows is None:
            return rows
        new = [
            row
            for row in rows
            if not self._rows.done_earlier(row.custom_id, row.prompt, row.config_hash)
        ]
        for row in new:
            self._rows.append(row)
        return new


def _failed(row: Row, error: str) -> Row:
    """The error row of a caption whose text could not be written; the row keeps the caption."""
    return replace(row, status=ERROR, finish_reason="error", error=error)
