"""The child process of a conversion: llama.cpp's converter, and ours for LLaVA, on its classes.

``conversion`` and the ``gguf`` it needs come from llama.cpp's source and lie in ``llama_cpp/``
beside this file; in a process of their own they never meet a ``gguf`` that the user installed.

:class:`atp_cpp.convert.child.Child` starts it with a job, one line of JSON, on stdin (see
:class:`Job`). Reports are lines of JSON on stdout, ``event`` says of what:

* ``plan``: ``files`` {path: bytes}; the parent answers with one line to go on;
* ``writing``: ``path``, ``what``: it grows from now on;
* ``note``: ``message``, something for the user to know;
* ``done``, or ``error``: ``message``.

When the parent goes away, so does this process.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atp_cpp import _core
from atp_cpp.convert.class_names import text_architecture
from atp_cpp.convert.failures import failure
from atp_cpp.convert.family import architecture, check_supported, is_llava
from atp_cpp.convert.next_layers import has_next_layers
from atp_cpp.convert.original_view import in_hf_layout
from atp_cpp.convert.outputs import write_error
from atp_cpp.convert.passthrough import (
    CHECKED,
    INTERNVL_HF,
    check_configuration,
    mmproj_class,
    text_class,
)
from atp_cpp.convert.quantise import QUANTISED, hollow, quantise, quantised_size
from atp_cpp.errors import AtpError, ConvertError, ModelError
from atp_cpp.models.pairing import CHECKPOINT_KEY

if TYPE_CHECKING:
    from conversion.base import ModelBase

UPSTREAM = Path(__file__).with_name("llama_cpp")
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What to convert.

    Attributes:
        folder: the checkpoint.
        name: goes into ``general.name``.
        text_out: file to write the text model to.
        text_type: its type: f32, f16, bf16, q8_0 or one of QUANTISED.
        stored_type: f32, f16 or bf16: what a model is written in before it is quantised.
        mmproj_out: file to write the projector to.
        mmproj_type: its type: f32, f16, bf16 or q8_0.
        checkpoint_id: hash of the weights, for both files.
        tower: folder of the vision tower, for a checkpoint that has none inside.
        config_only: see whether config.json is of a model that can be converted, and end: the rest
            need not be there.
    """

    folder: str
    name: str
    text_out: str
    text_type: str
    stored_type: str
    mmproj_out: str
    mmproj_type: str
    checkpoint_id: str = ""
    tower: str = ""
    config_only: bool = False

    @property
    def quantised(self) -> bool:
        """Whether the text model is written to ``raw`` first, then quantised from there."""
        return self.text_type in QUANTISED

    @property
    def raw(self) -> Path:
        """The text model before it is quantised; gone at the end."""
        return Path(self.text_out + ".raw")


def run_job(job: Job, report: Report) -> None:
    """Converts both parts of a checkpoint.

    Nothing is written before everything is known to be convertible: names, shapes and types of all
    tensors, the tokenizer, and the size of both files.

    Args:
        job: see :class:`Job`.
        report: told what happens; it may raise to stop the job: at "plan" no tensor is written.

    Raises:
        ConvertError: the checkpoint cannot be converted, in one line.
    """
    _never_run_code_of_checkpoints()
    with ExitStack() as stack:
        with _named_failures():
            beside = Path(job.mmproj_out).parent
            layout = in_hf_layout(Path(job.folder), job.tower, beside)
            job = replace(job, folder=str(stack.enter_context(layout)))
        _convert(job, report)


def _convert(job: Job, report: Report) -> None:
    with _named_failures():
        hparams = load_config(job)
        if job.config_only:
            report({"event": "done"})
            return
        text, vision = text_model(job, hparams), vision_model(job, hparams)
        if is_llava(hparams):
            from atp_cpp.convert.llava import check_head

            check_head(text)
        prepare(text)
        prepare(vision)
    sizes = {str(model.fname_out): write_head(model) for model in (text, vision)}
    for model in (text, vision):
        sizes |= _asked_llama_cpp(job, model, sizes[str(model.fname_out)])
    report({"event": "plan", "files": sizes})
    for model, what in ((vision, "vision projector"), (text, "text model")):
        report({"event": "writing", "what": what, "path": str(model.fname_out)})
        write_tensors(model)
    if job.quantised:
        what = f"quantising to {job.text_type}"
        report({"event": "writing", "what": what, "path": job.text_out})
        _quantise(job, sizes[job.text_out])
        job.raw.unlink()
    report({"event": "done"})


def _quantise(job: Job, n_bytes: int) -> None:
    target = Path(job.text_out)
    try:
        quantise(job.raw, target, job.text_type)
    except ModelError:
        if shutil.disk_usage(target.parent).free < n_bytes:  # what llama.cpp calls "iostream error"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise


def _never_run_code_of_checkpoints() -> None:
    """On stdin, the parent's line to this process, transformers would ask and wait for ever."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to wait for an answer: refuse


def load_config(job: Job) -> dict[str, Any]:
    """The checkpoint's configuration, complete with the defaults that transformers fills in.

    The classes of its parts are named in it as llama.cpp asks for them.
    """
    from conversion import MMPROJ_MODEL_MAP, TEXT_MODEL_MAP, get_model_architecture
    from conversion.base import ModelBase, ModelType

    config: dict[str, Any] = ModelBase.load_hparams(Path(job.folder), False)
    if architecture(config) == INTERNVL_HF:
        config["vision_config"]["architectures"] = ["InternVisionModel"]
    vision = get_model_architecture(config, ModelType.MMPROJ) in MMPROJ_MODEL_MAP
    text = get_model_architecture(config, ModelType.TEXT) in TEXT_MODEL_MAP
    if is_llava(config) or (vision and not text and config.get("text_config")):
        config["text_config"]["architectures"] = [text_architecture(config["text_config"])]
        text = get_model_architecture(config, ModelType.TEXT) in TEXT_MODEL_MAP
    check_supported(config, text=text, vision=vision)
    check_configuration(config)
    return config


def text_model(job: Job, config: dict[str, Any]) -> ModelBase:
    """llama.cpp's converter of the language model."""
    from conversion import get_model_architecture, get_model_class
    from conversion.base import ModelType

    from atp_cpp.convert.vocabulary import exact

    hparams = deepcopy(config)
    upstream = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    upstream = text_class(upstream, hparams)
    kind = exact(upstream, checked=is_llava(hparams) or architecture(hparams) in CHECKED)
    if not has_next_layers(Path(job.folder), hparams):
        kind.no_mtp = True  # save_pretrained leaves them out, and the configuration names them
    if job.quantised:
        return _instance(kind, job, hparams, str(job.raw), job.stored_type)
    return _instance(kind, job, hparams, job.text_out, job.text_type)


def vision_model(job: Job, config: dict[str, Any]) -> ModelBase:
    """Ours for LLaVA, llama.cpp's, with what it lacks, for everything else."""
    hparams = deepcopy(config)
    if is_llava(hparams):
        from atp_cpp.convert.llava import LlavaMmproj

        kind: type[ModelBase] = LlavaMmproj
    else:
        kind = mmproj_class(hparams)
    return _instance(kind, job, hparams, job.mmproj_out, job.mmproj_type)


def prepare(model: ModelBase) -> None:
    """Everything but bytes: tensors by name, shape and type, tokenizer and metadata."""
    path = model.fname_out
    model.prepare_tensors()
    with _named_for_card(model):
        model.prepare_metadata(vocab_only=False)
    model.fname_out = path  # llama.cpp would put the type into some names


@contextmanager
def _named_for_card(model: ModelBase) -> Iterator[None]:
    """llama.cpp guesses at general.* by the folder's name, which in the hub's cache is a commit."""
    assert model.model_name is not None
    with tempfile.TemporaryDirectory() as elsewhere:
        link = Path(elsewhere) / model.model_name
        link.symlink_to(model.dir_model.absolute(), target_is_directory=True)
        model.dir_model_card = link
        yield


def write_head(model: ModelBase) -> int:
    """Writes the file up to its tensors.

    Returns:
        The size the whole file will have, in bytes.
    """
    writer = model.gguf_writer
    writer.write_header_to_file(path=model.fname_out)
    writer.write_kv_data_to_file()
    tensors = [(name, info) for shard in writer.tensors for name, info in shard.items()]
    # a tensor's entry: name with its length, number of dimensions, dimensions, type, offset
    entries = sum(24 + len(name.encode()) + 8 * len(info.shape) for name, info in tensors)
    head = writer.ggml_pad(model.fname_out.stat().st_size + entries, writer.data_alignment)
    return head + sum(writer.ggml_pad(info.nbytes, writer.data_alignment) for _, info in tensors)


def _asked_llama_cpp(job: Job, model: ModelBase, n_bytes: int) -> dict[str, int]:
    """Lets llama.cpp look for all it needs in a file without data: the converter misses no tensor.

    Returns:
        The size of what the file will be quantised to, if it will be.
    """
    with hollow(model.gguf_writer, n_bytes) as path:
        try:
            _core.check_loadable(str(path))
        except ModelError as error:
            reason = str(error).replace(str(path), path.name)
            raise ConvertError(
                f"config.json and weights do not make a model that runs: {reason}; get the "
                "checkpoint again, all files from one place"
            ) from error
        if path != job.raw:
            return {}
        return {job.text_out: quantised_size(path, job.text_type)}


def write_tensors(model: ModelBase) -> None:
    """Writes the rest of the file, a tensor at a time.

    Raises:
        ConvertError: a weight is no number, or would become infinite in the file's type.
    """
    import numpy as np

    from atp_cpp.convert.finite import Finite

    writer = model.gguf_writer
    for shard in writer.tensors:
        for name, info in shard.items():
            assert info.dtype is not None
            info.tensor = Finite(name, info.dtype.name, info.tensor)
    try:
        with np.errstate(over="raise"):
            writer.write_tensors_to_file()
    except FloatingPointError as error:
        tensors = (item for shard in writer.tensors for item in shard.items())
        name, info = next((n, i) for n, i in tensors if i.tensor is not None)  # none: written
        assert info.dtype is not None
        raise ConvertError(
            f"{name} has weights too large for {info.dtype.name}; choose bf16 or f32 (--outtype "
            "for the text model, --mmproj-outtype for the projector)"
        ) from error
    writer.close()


def _instance(
    kind: type[ModelBase], job: Job, hparams: dict[str, Any], out: str, outtype: str
) -> ModelBase:
    import gguf

    types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    model = kind(Path(job.folder), types[outtype], Path(out), hparams=hparams, model_name=job.name)
    model.gguf_writer.add_string(CHECKPOINT_KEY, job.checkpoint_id)  # before the tokenizer's keys
    return model


@contextmanager
def _named_failures() -> Iterator[None]:
    """llama.cpp's converter fails in many ways; each becomes a ConvertError of one line."""
    try:
        yield
    except (AtpError, MemoryError):
        raise
    except Exception as error:
        traceback.print_exc()  # into the notes, which --verbose shows
        raise ConvertError(
            f"llama.cpp's converter cannot read this checkpoint: {failure(error)}"
        ) from error


class _Notes(logging.Handler):
    """Our own warnings, which the user sees even where the converter's notes are not shown."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report({"event": "note", "message": record.getMessage()})


def main() -> int:
    """The child's side of the talk; see the module."""
    job = Job(**json.loads(sys.stdin.readline()))
    answer = threading.Semaphore(0)

    def listen() -> None:
        while sys.stdin.readline():
            answer.release()
        os._exit(1)  # the parent is gone

    threading.Thread(target=listen, daemon=True).start()
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes elsewhere

    def report(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=stdout, flush=True)
        if event["event"] == "plan":
            answer.acquire()

    logging.basicConfig(level=logging.INFO)
    logging.getLogger("atp_cpp").addHandler(_Notes(report))
    import_upstream()
    try:
        run_job(job, report)
    except AtpError as error:
        report({"event": "error", "message": str(error)})
        return 1
    except OSError as error:
        report({"event": "error", "message": str(write_error(error, Path(job.text_out)))})
        return 1
    except Exception as error:
        traceback.print_exc()
        report({"event": "error", "message": f"the converter failed: {failure(error)}"})
        return 1
    return 0


def import_upstream() -> None:
    """Makes llama.cpp's ``conversion`` and ``gguf`` importable, before any other ``gguf``."""
    if not (UPSTREAM / "conversion").is_dir():
        raise ConvertError(f"this installation has no {UPSTREAM}; install atp_cpp again")
    os.environ["NO_LOCAL_GGUF"] = "1"  # it lies beside conversion, not in ../gguf-py
    sys.path.insert(0, str(UPSTREAM))
