"""``atp-cpp train``: trains ATP modules (and tunes the language model) on the user's questions."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atp_cpp.cli.arguments import add_verbose, whole
from atp_cpp.cli.terminal import EXIT_INTERRUPTED, EXIT_OK, EXIT_SOME_FAILED, Output, is_terminal
from atp_cpp.errors import AtpError
from atp_cpp.train.options import DTYPES, MODES, RULES, SCORES, TrainOptions

if TYPE_CHECKING:
    from atp_cpp.train.run import Trainer
    from atp_cpp.train.step import Watched

_PACKAGES = ("torch", "transformers", "gguf")
_DEFAULT = {f.name: f.default for f in TrainOptions.__dataclass_fields__.values()}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "train", help="learn what to keep, on your own questions", allow_abbrev=False
    )
    parser.add_argument(
        "-m", "--model", required=True, metavar="HF_DIR", help="a LLaVA-1.5 checkpoint (llava-hf's)"
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="questions as `eval` reads them, or LLaVA's JSON",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="checkpoint, curve and result")
    parser.add_argument("--image-dir", metavar="DIR", help="where relative image paths start")
    parser.add_argument(
        "--watch", metavar="FILE", help="held-out questions (default: some of --data are set aside)"
    )
    parser.add_argument("--name", default="", help="of the model (default: the folder's)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    _add_method(parser)
    _add_schedule(parser)
    parser.add_argument(
        "--device", default=_DEFAULT["device"], help="cpu, cuda, … (default: a GPU if there is one)"
    )
    parser.add_argument(
        "-t", "--threads", type=whole(0), default=0, metavar="N", help="CPU threads of torch"
    )
    add_verbose(parser)
    parser.set_defaults(run=run)


def _add_method(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is learned")
    group.add_argument(
        "--budget",
        type=float,
        default=_DEFAULT["budget"],
        metavar="F",
        help="fraction of the image tokens to aim at, mean over layers (default: %(default)s)",
    )
    group.add_argument(
        "--mode",
        choices=MODES,
        default=_DEFAULT["mode"],
        help="thresholds: the language model stays as it is; full: it is trained, too; lora: "
        "through adapters (default: %(default)s)",
    )
    group.add_argument(
        "--cuts",
        type=_cuts,
        default=(),
        metavar="N,N,…",
        help="layers before each module (default: 4,14,24 of 32, scaled to the depth)",
    )
    group.add_argument(
        "--score",
        choices=SCORES,
        default=_DEFAULT["score"],
        help="attention that is held against theta_r: of image rows and question rows, or of one "
        "of them alone (default: %(default)s)",
    )
    group.add_argument(
        "--rule",
        choices=RULES,
        default=_DEFAULT["rule"],
        help="which thresholds can keep a token (default: %(default)s)",
    )
    group.add_argument("--lora-rank", type=whole(1), default=_DEFAULT["lora_rank"], metavar="N")
    for name in ("lambda_atp", "lambda_target"):
        flag = "--" + name.replace("_", "-")
        group.add_argument(
            flag, type=float, default=_DEFAULT[name], metavar="X", help="default: %(default)s"
        )


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how long, how fast")
    group.add_argument(
        "--steps", type=whole(0), metavar="N", help="default: one pass over the data"
    )
    group.add_argument("--minutes", type=float, metavar="M", help="stop after M minutes")
    for name in ("images_per_batch", "questions_per_image", "watch_every"):
        flag = "--" + name.replace("_", "-")
        group.add_argument(
            flag, type=whole(1), default=_DEFAULT[name], metavar="N", help="default: %(default)s"
        )
    for name in ("lr_heads", "lr_llm", "save_minutes"):
        flag = "--" + name.replace("_", "-")
        group.add_argument(
            flag, type=float, default=_DEFAULT[name], metavar="X", help="default: %(default)s"
        )
    group.add_argument(
        "--hard",
        type=float,
        default=_DEFAULT["hard"],
        metavar="X",
        help="last share of the run with hard masks, as they will be (default: %(default)s)",
    )
    group.add_argument(
        "--align",
        type=float,
        default=_DEFAULT["align"],
        metavar="X",
        help="first share of the run, without pruning, in which the scores learn to point at what "
        "later layers attend to (default: %(default)s)",
    )
    group.add_argument("--dtype", choices=DTYPES, default=_DEFAULT["dtype"])
    group.add_argument("--seed", type=whole(0), default=_DEFAULT["seed"], metavar="N")


def _cuts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected layer counts as 4,14,24, got {text!r}"
        ) from None


def options_from(args: argparse.Namespace) -> TrainOptions:
    """The arguments as TrainOptions; AtpError for a value that cannot be used."""
    given: dict[str, Any] = {name: getattr(args, name) for name in _DEFAULT if hasattr(args, name)}
    for name in ("model", "data", "out", "image_dir", "watch"):
        given[name] = Path(given[name]) if given[name] is not None else None
    return TrainOptions(**given)


def run(args: argparse.Namespace, output: Output) -> int:
    """Trains; Ctrl-C saves the run and prints how to go on."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise AtpError(f"training needs {', '.join(missing)}; pip install 'atp_cpp[train]'")
    import torch
    from transformers.utils import logging

    from atp_cpp.train.run import Trainer

    if not is_terminal(sys.stderr):
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if args.threads:
        torch.set_num_threads(args.threads)
    trainer = Trainer(options_from(args), resume=args.resume)
    try:
        return _train(trainer, output)
    finally:
        trainer.close()


def _train(trainer: Trainer, output: Output) -> int:
    options = trainer.options
    output.note(
        f"{options.mode} on {trainer.device}: modules after {_listed(trainer.llava.spec.cuts)} "
        f"layers, {sum(p.numel() for p in trainer.trained.values()):,} trained parameters, "
        f"{len(trainer.batches.items)} images"
    )
    for change in trainer.changed:
        output.note(f"changed since the run began: {change}")
    left = None if trainer.n_steps is None else trainer.n_steps - trainer.step
    with _stop_signals() as stopped, output.progress(trainer.steps(), left, unit="step") as rows:
        for row in rows:
            if row.watched is not None:
                output.note(f"step {row.step}: {_described(row.watched, trainer)}")
            if hasattr(rows, "set_postfix"):
                names = [name for name in ("loss", "mean_tokens") if name in row.values]
                shown = {name: f"{row.values[name]:.3g}" for name in names}
                rows.set_postfix(shown, refresh=False)
            if stopped:
                break
    if stopped and trainer.progress < 1:
        trainer.save()
        output.note(f"stopped after step {trainer.step}; the same command with --resume goes on")
        return EXIT_INTERRUPTED
    watched = trainer.finish()
    output.note(f"after {trainer.step} steps: {_described(watched, trainer)}")
    if not options.fixed:
        output.note(f"next: atp-cpp convert --atp {options.out}")
    output.result(str(options.out))
    n_bad = trainer.batches.n_bad_images + trainer.watch_batches.n_bad_images
    if n_bad:
        output.note(f"{n_bad} times an image could not be read and was left out")
    return EXIT_SOME_FAILED if n_bad else EXIT_OK


def _described(watched: Watched, trainer: Trainer) -> str:
    n_tokens = trainer.batches.prompting.n_image_tokens
    kept = _listed(round(share * n_tokens) for share in watched.kept)
    return (
        f"held-out accuracy {watched.accuracy:.3f}, loss {watched.loss:.3f}, mean tokens "
        f"{watched.mean_tokens:.1f} (std {watched.std_tokens:.1f}) of {n_tokens}, kept {kept}"
    )


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers))


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that gets the number of the first Ctrl-C or SIGTERM; the second one interrupts."""
    caught: list[int] = []

    def handle(number: int, _: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
