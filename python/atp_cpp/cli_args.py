"""Arguments that several commands share, under the names llama.cpp's users know."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from atp_cpp.captioner import DEMO_MODEL, Captioner, model_files
from atp_cpp.config import POLICIES, CutSpec, PolicyLike, SamplingConfig, parse_plan
from atp_cpp.errors import PlanError
from atp_cpp.prompts import DEFAULT_PROMPT
from atp_cpp.terminal import Output

_SAMPLING = SamplingConfig()  # its defaults


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """-m, --mmproj, -c, -t, -ngl and --verbose."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m", "--model", metavar="GGUF", help="text model (default: the built-in demo model)"
    )
    group.add_argument("--mmproj", metavar="GGUF", help="its vision projector")
    group.add_argument(
        "-c",
        "--ctx-size",
        type=whole(1),
        default=4096,
        metavar="N",
        help="positions that prompt and answer may take together (default: %(default)s)",
    )
    add_devices(group)
    add_verbose(parser)


def add_devices(parser: argparse._ActionsContainer) -> None:
    """-t and -ngl."""
    parser.add_argument(
        "-t",
        "--threads",
        type=whole(0),
        default=0,
        metavar="N",
        help="CPU threads (default: chosen by the engine)",
    )
    parser.add_argument(
        "-ngl",
        "--n-gpu-layers",
        type=whole(-1),
        default=-1,
        metavar="N",
        help="layers on the accelerator, -1 for all (default: %(default)s)",
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """--verbose."""
    parser.add_argument(
        "--verbose", action="store_true", help="show llama.cpp's log, and tracebacks of errors"
    )


def add_policy_arguments(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """--policy and --keep."""
    group = parser.add_argument_group("pruning")
    group.add_argument(
        "--policy",
        action="append",
        metavar="NAME[:k=v,…]",
        required=required,
        help=f"a cut: {', '.join(POLICIES)}; with after=LAYERS (or a fraction of the depth), "
        "keep=FRACTION and seed=N, for instance fastv:keep=0.25,after=2. Repeat it for more cuts",
    )
    group.add_argument(
        "--keep",
        type=float,
        metavar="F",
        help="fraction of image tokens kept where --policy does not say",
    )


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """-p, -n, --temp and --seed."""
    add_prompt(parser)
    add_predict(parser, _SAMPLING.n_predict)
    parser.add_argument(
        "--temp",
        type=float,
        default=_SAMPLING.temp,
        metavar="T",
        help="sampling temperature, 0 for greedy (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=whole(0), default=_SAMPLING.seed, metavar="N", help="seed of the draw"
    )


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """-p."""
    parser.add_argument(
        "-p", "--prompt", default=DEFAULT_PROMPT, metavar="TEXT", help="default: %(default)s"
    )


def add_predict(parser: argparse.ArgumentParser, default: int) -> None:
    """-n."""
    parser.add_argument(
        "-n",
        "--predict",
        type=whole(1),
        default=default,
        metavar="N",
        help="at most this many tokens (default: %(default)s)",
    )


def sampling_from(args: argparse.Namespace) -> SamplingConfig:
    """-n, --temp and --seed as a SamplingConfig; AtpError if they cannot be."""
    return SamplingConfig(n_predict=args.predict, temp=args.temp, seed=args.seed)


def policy_from(args: argparse.Namespace) -> tuple[CutSpec, ...]:
    """The plan of --policy and --keep.

    Raises:
        PlanError: a text that is no policy, or --keep without anything it could apply to.
    """
    plan = parse_plan(args.policy, keep=args.keep)
    if args.keep is not None and all(cut.policy == "none" for cut in plan):
        raise PlanError("--keep needs a policy that prunes, for instance --policy fastv")
    return plan


def open_captioner(args: argparse.Namespace, output: Output, policy: PolicyLike) -> Captioner:
    """The captioner the arguments ask for; says so when it is the demo's."""
    model_files(args.model, args.mmproj)
    if args.model is None:
        output.note(
            f"using the built-in demo model {DEMO_MODEL}; -m MODEL --mmproj FILE takes another"
        )
    return Captioner(
        args.model,
        mmproj=args.mmproj,
        policy=policy,
        n_gpu_layers=args.n_gpu_layers,
        n_ctx=args.ctx_size,
        n_threads=args.threads,
    )


def whole(minimum: int) -> Callable[[str], int]:
    """An argument type: whole numbers from `minimum` on."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected at least {minimum}, got {value}")
        return value

    return parse
