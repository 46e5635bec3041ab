"""A picklable callable, dict of arrays -> dict of arrays: the unit of Ray Data, Daft and Spark.

:class:`CaptionBatch` holds settings only. The first call loads the model, once, in the process that
makes the call. Nothing here schedules: the framework spreads the calls over processes and machines,
and repeats the calls of a process that died.
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

# column name -> type of the array that comes out; texts are Python str in arrays of objects
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
    …}``; optionally a column of ids and a column of prompts. Out, in the same order and length: all
    input columns except the images, and the columns of ``OUTPUT_COLUMNS``, always of these types.
    The output columns are the fields of a Row, but ``n_kept`` is one number: the image tokens alive
    after the last cut. Without a column of ids, the id is the path, or the sha256 of the image;
    given ids keep their type. An image that cannot be captioned gets status "error" and the reason
    in "error"; such an image never raises.

    A pickle holds the settings alone, also after use. Names of model files are made absolute here.
    The files must have the same names on every machine where the object is called.

    Args:
        model: GGUF of the text model; None for the built-in demo model.
        mmproj: GGUF of the vision projector that belongs to ``model``.
        atp: GGUF of the ATP sidecar that was trained for ``model``.
        policy: cuts and the policy at each cut; see Captioner.
        budget: of the policy atp: the mean of the image tokens over the layers; see Captioner.
        prompt: the question for images without a question in the column of prompts.
        batch_size: captions under way at once. Give each call several times as many images.
        sampling: how tokens are drawn; greedy, at most 128 tokens, if not given.
        kv_budget: bytes that all caches may take together, or a text such as "2G"; half of the
            free memory if not given.
        n_load_threads: threads that open images; one for each CPU core up to 4 if not given.
        n_gpu_layers: layers on the accelerator; -1 for all, 0 for none.
        n_ctx: positions that a prompt and its answer may take together.
        n_ubatch: rows computed at once.
        n_threads: CPU threads of one process. 0 takes all cores: do not use 0 when several
            processes run on one machine.
        n_threads_encode: more CPU threads, for the vision encoder alone. 0: the encoder uses
            the ``n_threads`` threads, and encoder and decoder take turns.
        flash_attn: "auto", "on" or "off".
        type_k: element type of the key cache, "f16", "f32", "q8_0" …
        type_v: element type of the value cache.
        self_test: compare the staged decoder with plain llama.cpp at load.
        image_column: name of the images' column.
        id_column: name of the ids' column; the column may be missing in a batch.
        prompt_column: name of the prompts' column; the column may be missing in a batch. A value
            of None or "" asks ``prompt``.
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
            AtpError: the column of images is missing, or the columns have different lengths.
            ModelError: the model cannot be loaded.
            PlanError: the cuts cannot be run by this model.
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
        self._pid = 0  # id of the process that loaded the model

    def _loaded(self) -> Captioner:
        """The loaded model. A forked child loads its own model and never uses the parent's."""
        if self._captioner is None or self._pid != os.getpid():
            self._captioner, self._pid = Captioner(**self._load), os.getpid()
        return self._captioner

    def _checked(self, batch: Mapping[str, Any]) -> Any:
        """The column of images; AtpError if the batch cannot be captioned."""
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
    """One value of the column of images as an Item, which is named by its path if it has one."""
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
    """One value of the column of prompts; "" for a missing one: None, or the NaN of pandas."""
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
    """An array of objects that holds the values unchanged."""
    column = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        column[i] = value
    return column


def _array(values: Any) -> NDArray[Any]:
    """An input column that goes to the output: unchanged if it is an array, else made an array."""
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "__array__"):  # a pandas Series
        return np.asarray(values)
    is_number = all(isinstance(value, (bool, int, float)) for value in values)
    return np.asarray(values) if is_number else _texts(values)
