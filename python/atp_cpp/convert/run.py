"""A Hugging Face checkpoint into GGUF files: the whole way as one function.

Source -> local folder -> verified checkpoint -> worker process (llama.cpp's converter) -> files
that appear together, under their names, when all are complete.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from atp_cpp.convert.atp import convert_atp
from atp_cpp.convert.checkpoint import Checkpoint, read_checkpoint, read_config
from atp_cpp.convert.child import Child
from atp_cpp.convert.identity import checkpoint_id
from atp_cpp.convert.next_layers import tensor_names
from atp_cpp.convert.original_llava import has_tower, is_original, known_tower, tower_name
from atp_cpp.convert.outputs import Outputs
from atp_cpp.convert.source import fetch
from atp_cpp.convert.worker import Job
from atp_cpp.errors import ConvertError
from atp_cpp.sidecar.fingerprint import fingerprint_from_gguf
from atp_cpp.sidecar.sidecar import AtpSidecar

TEXT_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_k_m", "auto")
MMPROJ_TYPES = ("f32", "f16", "bf16", "q8_0", "auto")

_TYPE_KEYS = ("dtype", "torch_dtype")  # in config.json; the second in older ones

# what is being done, bytes done, bytes in all
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """One file that a conversion wrote, or that it would write in a dry run.

    Attributes:
        path: path of the file.
        size_bytes: size of the file.
        what: "text model", "vision projector" or "ATP sidecar".
    """

    path: Path
    size_bytes: int
    what: str


@dataclass(frozen=True, slots=True)
class _Target:
    """The paths and types of the files of one conversion."""

    text: Path
    text_type: str
    mmproj: Path
    mmproj_type: str
    sidecar: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths of all files."""
        return (self.text, self.mmproj, *(() if self.sidecar is None else (self.sidecar,)))

    def job(self, checkpoint: Checkpoint, parts: Mapping[Path, Path]) -> Job:
        """The worker's job; the worker writes to `parts`, which are renamed later."""
        return Job(
            folder=str(checkpoint.folder),
            name=checkpoint.name,
            text_out=str(parts[self.text]),
            text_type=self.text_type,
            # the types in PyTorch's own files are not known: f32 holds every value
            stored_type=stored_type(checkpoint) if checkpoint.tensors else "f32",
            mmproj_out=str(parts[self.mmproj]),
            mmproj_type=self.mmproj_type,
        )


@dataclass(frozen=True, slots=True)
class _Request:
    """The user's arguments for a conversion; see `convert_hf`."""

    outfile_dir: Path
    outtype: str
    mmproj_outtype: str
    atp: str | os.PathLike[str] | None
    model_name: str | None
    force: bool
    verbose: bool
    vision_tower: str | os.PathLike[str] | None
    dry_run: bool

    def rehearse(self, folder: Path, name: str) -> tuple[ConvertedFile, ...]:
        """Checks everything except the tensors' data, and leaves no file.

        Args:
            folder: folder of the checkpoint; the data of its weights may be holes.
            name: name for the files, unless the user gave a name.
        """
        checkpoint, target, _ = self._prepare(folder, name)
        with tempfile.TemporaryDirectory() as elsewhere:
            parts = {path: Path(elsewhere) / path.name for path in target.paths}
            files = []
            if self.atp is not None and target.sidecar is not None:
                files.append(_sidecar(self.atp, target.sidecar, parts[target.sidecar], None))
            job = self._job(target, checkpoint, parts, self._tower(checkpoint))
            return (*_converted(target, job, _plan(job, self.verbose)), *files)

    def look(self, folder: Path, name: str) -> None:
        """Makes every check that is possible before weights are downloaded.

        Args:
            folder: folder of the checkpoint, with the headers of safetensors, or without weights.
            name: name for the files, unless the user gave a name.
        """
        if any(folder.glob("*.safetensors")):
            self.rehearse(folder, name)
            return
        checkpoint = Checkpoint(folder, self._name(name), read_config(folder), {})
        target, _ = self._target(checkpoint)
        if self.atp is not None:
            AtpSidecar.load_dir(self.atp)
        parts = {path: path for path in target.paths}
        job = self._job(target, checkpoint, parts, self._tower(checkpoint))
        with Child(replace(job, config_only=True), verbose=self.verbose) as child:
            for _ in child.events():
                pass

    def convert(
        self, folder: Path, name: str, on_progress: Progress | None
    ) -> tuple[ConvertedFile, ...]:
        """Writes the files."""
        checkpoint, target, outputs = self._prepare(folder, name)
        if self.atp is not None:
            AtpSidecar.load_dir(self.atp)  # raises before the slow part
        tower = self._tower(checkpoint)
        with outputs:
            parts = {path: outputs.part(path) for path in target.paths}
            job = self._job(target, checkpoint, parts, tower)
            files = _converted(target, job, _write(job, outputs, self.verbose, on_progress))
            if self.atp is not None and target.sidecar is not None:
                text = parts[target.text]
                files.append(_sidecar(self.atp, target.sidecar, parts[target.sidecar], text))
            return tuple(files)

    def _job(
        self, target: _Target, checkpoint: Checkpoint, parts: Mapping[Path, Path], tower: str
    ) -> Job:
        known = checkpoint_id(checkpoint)
        return replace(target.job(checkpoint, parts), checkpoint_id=known, tower=tower)

    def _tower(self, checkpoint: Checkpoint) -> str:
        """The folder of the vision tower, fetched if it has to be; "" where there is no need."""
        config = checkpoint.config
        if not is_original(config):
            if self.vision_tower is not None:
                raise ConvertError(
                    "--vision-tower is for checkpoints in LLaVA's original layout that have none "
                    "inside; leave it out"
                )
            return ""
        if self.vision_tower is not None:
            folder, _ = fetch(os.fspath(self.vision_tower), dry_run=self.dry_run)
        elif has_tower(list(tensor_names(checkpoint.folder))) and known_tower(tower_name(config)):
            return ""
        else:
            try:
                folder, _ = fetch(tower_name(config), dry_run=self.dry_run)
            except ConvertError as error:
                raise ConvertError(
                    f"the vision tower is not in this checkpoint, config.json names "
                    f"{tower_name(config)}, and: {error}; or name its folder with --vision-tower"
                ) from error
        return str(folder.absolute())

    def _prepare(self, folder: Path, name: str) -> tuple[Checkpoint, _Target, Outputs]:
        checkpoint = read_checkpoint(folder, self._name(name))
        return checkpoint, *self._target(checkpoint)

    def _name(self, default: str) -> str:
        return _checked_name(default if self.model_name is None else self.model_name)

    def _target(self, checkpoint: Checkpoint) -> tuple[_Target, Outputs]:
        """The files to write; raises if one of them exists and may not be replaced."""
        target = _target(
            checkpoint, self.outfile_dir, self.outtype, self.mmproj_outtype, self.atp is not None
        )
        return target, Outputs(target.paths, force=self.force)


def convert_hf(
    source: str | os.PathLike[str],
    outfile_dir: str | os.PathLike[str],
    *,
    outtype: str = "auto",
    mmproj_outtype: str = "auto",
    atp: str | os.PathLike[str] | None = None,
    model_name: str | None = None,
    revision: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    verbose: bool = False,
    vision_tower: str | os.PathLike[str] | None = None,
    on_progress: Progress | None = None,
) -> tuple[ConvertedFile, ...]:
    """Converts a vision-language checkpoint to ``NAME-TYPE.gguf`` and ``mmproj-NAME-TYPE.gguf``.

    Args:
        source: folder as save_pretrained writes it, or a hub id (``org/name``).
        outfile_dir: folder for the files; made if it is not there.
        outtype: type of the text model: one of TEXT_TYPES. auto: bf16 or f16 as in the checkpoint,
            f16 for float32.
        mmproj_outtype: type of the projector: one of MMPROJ_TYPES. auto: f16.
        atp: folder of trained ATP modules; they are written to ``atp-NAME-f32.gguf``.
        model_name: NAME; if not given, the name of the folder or repository.
        revision: branch, tag or commit on the hub.
        force: replace files that are there.
        dry_run: check everything, write nothing.
        verbose: the converter's notes go to stderr.
        vision_tower: folder or hub id of the encoder, for a checkpoint in LLaVA's original layout
            that has none inside; without it the encoder that config.json names.
        on_progress: called with the name of the present work, bytes done and bytes in all.

    Returns:
        The files.

    Raises:
        ConvertError: says in one line what is wrong; no incomplete file stays.
        ModelError: the ATP folder cannot be converted.
        KeyboardInterrupt: Ctrl-C; no incomplete file stays.
    """
    _check_type("outtype", outtype, TEXT_TYPES)
    _check_type("mmproj_outtype", mmproj_outtype, MMPROJ_TYPES)
    for path in (source, outfile_dir, atp):
        if path is not None:
            _check_path(path)
    request = _Request(
        Path(outfile_dir),
        outtype=outtype,
        mmproj_outtype=mmproj_outtype,
        atp=atp,
        model_name=model_name,
        force=force,
        verbose=verbose,
        vision_tower=vision_tower,
        dry_run=dry_run,
    )
    folder, name = fetch(
        os.fspath(source),
        revision=revision,
        dry_run=dry_run,
        before_download=request.look,  # check before gigabytes are downloaded
    )
    if dry_run:
        return request.rehearse(folder, name)
    return request.convert(folder, name, on_progress)


def stored_type(checkpoint: Checkpoint) -> str:
    """The type of a checkpoint's weights: f32, bf16, or f16. Any other type counts as f16.

    The headers of PyTorch's own files are not read; for them the type in config.json counts.
    """
    if not checkpoint.tensors:
        config = checkpoint.config
        parts = (config, config.get("text_config"))
        given = [part.get(key) for part in parts if isinstance(part, dict) for key in _TYPE_KEYS]
        known = {"float32": "f32", "bfloat16": "bf16"}
        return known.get(next((str(name) for name in given if name), ""), "f16")
    matrices = (t.dtype for t in checkpoint.tensors.values() if len(t.shape) >= 2)
    return {"F32": "f32", "BF16": "bf16"}.get(next(matrices, "F16"), "f16")


def _target(
    checkpoint: Checkpoint, out: Path, outtype: str, mmproj_outtype: str, with_atp: bool
) -> _Target:
    name = checkpoint.name
    stored = stored_type(checkpoint)
    auto = "bf16" if stored == "bf16" else "f16"
    text_type = auto if outtype == "auto" else outtype
    # for an encoder, f16 loses nothing that bf16 keeps, and more devices compute with f16
    mmproj_type = "f16" if mmproj_outtype == "auto" else mmproj_outtype
    return _Target(
        text=out / f"{name}-{text_type}.gguf",
        text_type=text_type,
        mmproj=out / f"mmproj-{name}-{mmproj_type}.gguf",
        mmproj_type=mmproj_type,
        sidecar=out / f"atp-{name}-f32.gguf" if with_atp else None,
    )


def _plan(job: Job, verbose: bool) -> dict[str, int]:
    """The sizes in bytes that the worker computes for its files."""
    with Child(job, verbose=verbose) as child:
        for event in child.events():
            if event is not None and event["event"] == "plan":
                sizes: dict[str, int] = event["files"]
                return sizes
    raise AssertionError("events() ends with an error or a plan")


def _write(
    job: Job, outputs: Outputs, verbose: bool, on_progress: Progress | None
) -> dict[str, int]:
    """Lets the worker write its files; reports the progress while they grow."""
    sizes: dict[str, int] = {}
    doing: tuple[str, str] | None = None  # what, path

    def tell() -> None:
        if on_progress is not None and doing is not None:
            what, path = doing
            done = os.path.getsize(path) if os.path.exists(path) else 0
            on_progress(what, min(done, sizes[path]), sizes[path])

    with Child(job, verbose=verbose) as child:
        for event in child.events():
            tell()
            if event is None:
                continue
            if event["event"] == "plan":
                sizes |= event["files"]
                outputs.check_space(sum(sizes.values()))
                child.go_on()
            doing = (event["what"], event["path"]) if "what" in event else None
    return sizes


def _converted(target: _Target, job: Job, sizes: Mapping[str, int]) -> list[ConvertedFile]:
    return [
        ConvertedFile(target.text, sizes[job.text_out], "text model"),
        ConvertedFile(target.mmproj, sizes[job.mmproj_out], "vision projector"),
    ]


def _sidecar(
    folder: str | os.PathLike[str], target: Path, part: Path, text: Path | None
) -> ConvertedFile:
    """Writes the sidecar to `part`; raises if it was trained for another model than `text`."""
    done = convert_atp(folder, part, force=True)
    theirs = done.sidecar.fingerprint
    if text is not None and theirs != (ours := fingerprint_from_gguf(text)):
        raise ConvertError(
            f"{os.fspath(folder)}: trained for another model (fingerprint {theirs[:12]}…, this one "
            f"has {ours[:12]}…); convert the checkpoint that training wrote beside it"
        )
    return ConvertedFile(target, done.size_bytes, "ATP sidecar")


def _checked_name(name: str) -> str:
    if Path(name).name != name or not name.strip(".") or not name.isprintable():
        raise ConvertError(
            f"model name: expected part of a file name, got {name!r}; give another (--model-name)"
        )
    return name


def _check_path(path: str | os.PathLike[str]) -> None:
    """llama.cpp and the tokenizers take paths in UTF-8 only."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise ConvertError(
            f"{os.fspath(path)!r}: expected a path in UTF-8, got other bytes; rename it, or reach "
            "it by a link of another name"
        ) from None


def _check_type(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConvertError(f"{what}: expected one of {', '.join(choices)}, got {value!r}")
