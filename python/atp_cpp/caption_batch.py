"""A picklable callable, dict of arrays -> dict of arrays: the unit of Ray Data, Daft and Spark.

:class:`CaptionBatch` holds settings until it is called; the model is loaded then, in the process
that calls it, once. How calls are spread over processes and machines, and what is done again when
one of them dies, is the framework's work: nothing here schedules.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atp_cpp.batch.output.rows import Row
from atp_cpp.batch.source.item import Item
from atp_cpp.captioner import Captioner
from atp_cpp.errors import AtpError
from atp_cpp.images.load import source_name
from atp_cpp.options.plan import Budget, PolicyLike, SamplingConfig
from atp_cpp.prompts.prompt import DEFAULT_PROMPT

__all__ = ["OUTPUT_COLUMNS", "CaptionBatch"]

# name -> type of the arrays that come out; texts are Python's own, in arrays of objects
OUTPUT_COLUMNS: dict[str, type] = {
    "custom_id": object,
    "prompt": object,
    "caption": object,
    "finish_reason": object,
    "status": object,
    "error": object,
    "sha256": object,
    "n_image_tokens": np.int32,
    "n_kept": np.int32,
    "tokens_mean": np.float64,
    "t_load": np.float64,
    "t_encode": np.float64,
    "t_prefill": np.float64,
    "t_decode": np.float64,
    "kv_bytes": np.int64,
    "config_hash": object,
}


class CaptionBatch:
    """Captions the images of one batch a call.

    In: a column of images, each a path, encoded bytes, uint8 [h, w, 3] or ``{"bytes": …, "path":
    …}``; if wanted columns of ids and of prompts. Out, in the same order and length: all columns
    that came in but the images, and those of ``OUTPUT_COLUMNS``, always of these types. They are
    what a Row has, but ``n_kept`` is one number: image tokens alive after the last cut. Without a
    column of ids it is the path, or the sha256 of the image; ids that came in keep their type. An
    image that cannot be captioned has status "error" and the reason in "error"; it never raises.

    Pickles hold the settings alone, also after use. Names of model files are made absolute here;
    the files must be there under these names wherever it is called.

    Args:
        model: see Captioner.
        mmproj: see Captioner.
        atp: see Captioner.
        policy: see Captioner.
        budget: see Captioner.
        prompt: the question, where no column asks another.
        batch_size: captions under way at once. Give each call several times as many images.
        sampling: see Captioner.caption.
        kv_budget: see Captioner.caption_many.
        n_load_threads: see Captioner.caption_many.
        n_gpu_layers: see Captioner.
        n_ctx: see Captioner.
        n_ubatch: see Captioner.
        n_threads: CPU threads of one process; 0 takes all cores, which several processes on one
            machine must not.
        n_threads_encode: see Captioner.
        flash_attn: see Captioner.
        type_k: see Captioner.
        type_v: see Captioner.
        self_test: see Captioner.
        image_column: name of the images' column.
        id_column: name of the ids' column; it may be missing in a batch.
        prompt_column: name of the prompts' column; it may be missing in a batch. None or "" there
            asks ``prompt``.
    """

    _captioner: Captioner | None

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        mmproj: str | os.PathLike[str] | None = None,
        atp: str | os.PathLike[str] | None = None,
        policy: PolicyLike = None,
        budget: Budget | None = None,
        prompt: str = DEFAULT_PROMPT,
        batch_size: int = 16,
        sampling: SamplingConfig | None = None,
        kv_budget: int | str | None = None,
        n_load_threads: int | None = None,
        n_gpu_layers: int = -1,
        n_ctx: int = 4096,
        n_ubatch: int = 512,
        n_threads: int = 0,
        n_threads_encode: int = 0,
        flash_attn: str = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        self_test: bool = True,
        image_column: str = "image",
        id_column: str = "custom_id",
        prompt_column: str = "prompt",
    ) -> None:
        self._load: dict[str, Any] = {
            "model": _absolute(model),
            "mmproj": _absolute(mmproj),
            "atp": _absolute(atp),
            "policy": policy,
            "budget": budget,
            "n_gpu_layers": n_gpu_layers,
            "n_ctx": n_ctx,
            "n_ubatch": n_ubatch,
            "n_threads": n_threads,
            "n_threads_encode": n_threads_encode,
            "flash_attn": flash_attn,
            "type_k": type_k,
            "type_v": type_v,
            "self_test": self_test,
        }
        self._many: dict[str, Any] = {
            "prompt": prompt,
            "batch_size": batch_size,
            "sampling": sampling,
            "kv_budget": kv_budget,
            "n_load_threads": n_load_threads,
        }
        self._columns = {"image": image_column, "custom_id": id_column, "prompt": prompt_column}
        self._unloaded()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Captions a batch.

        Args:
            batch: column name -> array or sequence, all of one length.

        Returns:
            Column name -> array; see the class.

        Raises:
            AtpError: no column of images, or columns of several lengths; ModelError and PlanError
                if the model cannot be loaded so.
        """
        images = self._checked(batch)
        with self._lock:
            rows = list(self._rows(images, batch)) if len(images) else []
        out = {k: _array(v) for k, v in batch.items() if k != self._columns["image"]}
        made = _columns_of(rows)
        if self._columns["custom_id"] in out:
            made["custom_id"] = out[self._columns["custom_id"]]
        return out | made

    def close(self) -> None:
        """Frees the model. The next call loads it again."""
        with self._lock:
            if self._captioner is not None and self._pid == os.getpid():
                self._captioner.close()
            self._captioner = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_load", "_many", "_columns")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._unloaded()

    def _unloaded(self) -> None:
        self._lock = threading.Lock()  # one batch at a time
        self._captioner = None
        self._pid = 0  # of the process that loaded it

    def _loaded(self) -> Captioner:
        """The model; a child that was forked off loads its own and leaves its parent's alone."""
        if self._captioner is None or self._pid != os.getpid():
            self._captioner, self._pid = Captioner(**self._load), os.getpid()
        return self._captioner

    def _checked(self, batch: Mapping[str, Any]) -> Any:
        """The images of a batch that can be."""
        name = self._columns["image"]
        if name not in batch:
            raise AtpError(
                f"expected a column {name!r} with images, got {', '.join(map(repr, batch))}; "
                "name yours with image_column="
            )
        lengths = {column: len(values) for column, values in batch.items()}
        if len(set(lengths.values())) > 1:
            raise AtpError(f"expected columns of one length, got {lengths}")
        return batch[name]

    def _rows(self, images: Any, batch: Mapping[str, Any]) -> Iterator[Row]:
        asked = batch.get(self._columns["prompt"])
        prompts = [""] * len(images) if asked is None else [_prompt(value) for value in asked]
        items = (
            _item(image, prompt or self._many["prompt"])
            for image, prompt in zip(images, prompts, strict=True)
        )
        with self._loaded().caption_many(items, **self._many) as rows:
            yield from rows


def _absolute(path: str | os.PathLike[str] | None) -> Path | None:
    return Path(path).absolute() if path else None


def _item(value: Any, prompt: str) -> Item:
    """What stands in a column of images, as an item; called by its path where it has one."""
    source = value
    if isinstance(value, Mapping):  # a column of images of the datasets library
        source = value.get("bytes") or value.get("path")
    if isinstance(source, (bytearray, memoryview, np.bytes_)):
        source = bytes(source)
    elif isinstance(source, np.str_):
        source = str(source)
    try:
        name = source_name(source)
    except AtpError as error:
        return Item("", type(source).__name__, b"", (prompt,), str(error))
    is_path = isinstance(source, (str, os.PathLike))
    return Item(name if is_path else "", name, source, (prompt,))


def _prompt(value: Any) -> str:
    """A prompt of a column; "" for what stands for none there: None, or pandas' NaN."""
    return "" if value is None or value != value else str(value)


def _columns_of(rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    for name, kind in OUTPUT_COLUMNS.items():
        if name == "custom_id":
            values: list[Any] = [row.custom_id or row.sha256 for row in rows]
        elif name == "n_kept":
            values = [row.n_kept[-1] if row.n_kept else row.n_image_tokens for row in rows]
        else:
            values = [getattr(row, name) for row in rows]
        columns[name] = _texts(values) if kind is object else np.array(values, dtype=kind)
    return columns


def _texts(values: Sequence[Any]) -> NDArray[Any]:
    """An array of the objects themselves, whatever they are."""
    column = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        column[i] = value
    return column


def _array(values: Any) -> NDArray[Any]:
    """A column that is handed through, as it is, or as an array if it is none."""
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "__array__"):  # a pandas Series
        return np.asarray(values)
    is_number = all(isinstance(value, (bool, int, float)) for value in values)
    return np.asarray(values) if is_number else _texts(values)
