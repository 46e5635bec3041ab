"""Arguments that several commands share, under the names llama.cpp's users know."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from atp_cpp.captioner import Captioner
from atp_cpp.cli.terminal import Output
from atp_cpp.errors import ModelError, PlanError
from atp_cpp.hub.gguf_files import hub_model
from atp_cpp.models.files import DEMO_MODEL, atp_file, model_files
from atp_cpp.options.plan import (
    ATP,
    POLICIES,
    PolicyLike,
    SamplingConfig,
    parse_budget,
    parse_plan,
    uses_atp,
)
from atp_cpp.prompts.prompt import DEFAULT_PROMPT

_SAMPLING = SamplingConfig()  # the defaults


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """-m, -hf, --mmproj, --atp, -c, -t, -ngl, -fa, -ctk, -ctv and --verbose."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m", "--model", metavar="GGUF", help="text model (default: the built-in demo model)"
    )
    group.add_argument(
        "-hf",
        "--hf-repo",
        metavar="USER/REPO[:QUANT]",
        help='model, projector and sidecar from the hub (pip install "atp_cpp[hub]")',
    )
    group.add_argument("--mmproj", metavar="GGUF", help="its vision projector")
    group.add_argument(
        "--atp",
        metavar="GGUF",
        help="its ATP sidecar; with one, atp is the default --policy",
    )
    group.add_argument(
        "-c",
        "--ctx-size",
        type=whole(1),
        default=4096,
        metavar="N",
        help="positions that prompt and answer may take together (default: %(default)s)",
    )
    add_devices(group)
    _add_cache(group)
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


def _add_cache(parser: argparse._ActionsContainer) -> None:
    """-fa, -ctk and -ctv."""
    parser.add_argument(
        "-fa",
        "--flash-attn",
        choices=("auto", "on", "off"),
        default="auto",
        help="flash attention (default: %(default)s)",
    )
    for short, name, what in (
        ("-ctk", "--cache-type-k", "keys"),
        ("-ctv", "--cache-type-v", "values"),
    ):
        parser.add_argument(
            short,
            name,
            default="f16",
            metavar="TYPE",
            help=f"element type of the KV cache's {what}: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, "
            "q4_0, iq4_nl (default: f16)",
        )


def add_force(parser: argparse._ActionsContainer) -> None:
    """--force."""
    parser.add_argument("--force", action="store_true", help="replace an output file that is there")


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """--verbose."""
    parser.add_argument(
        "--verbose", action="store_true", help="show llama.cpp's log, and tracebacks of errors"
    )


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """--policy, --keep and --budget."""
    group = parser.add_argument_group("pruning")
    group.add_argument(
        "--policy",
        action="append",
        metavar="NAME[:k=v,…]",
        help=f"a cut: {', '.join(POLICIES)}; with after=LAYERS (or a fraction of the depth), "
        "keep=FRACTION and seed=N, for instance fastv:keep=0.25,after=2. Repeat it for more cuts. "
        "atp has the cuts of its sidecar and takes budget=F|N. Default: atp with a sidecar, else "
        "none",
    )
    group.add_argument(
        "--keep",
        type=float,
        metavar="F",
        help="fraction of image tokens kept where --policy does not say",
    )
    group.add_argument(
        "--budget",
        metavar="F|N",
        help="policy atp, where --policy does not say: image tokens, mean over all layers, as a "
        "fraction with a decimal point (0.25) or a count (144)",
    )


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """-p, -n, --temp and --seed."""
    add_prompt(parser)
    add_draw(parser)


def add_draw(parser: argparse._ActionsContainer) -> None:
    """-n, --temp, --top-k, --top-p, --min-p, --seed, --stop and the penalties."""
    add_predict(parser, _SAMPLING.n_predict)
    for name, what in (
        ("repeat_penalty", "divides the logits of tokens that the answer holds, 1 for none"),
        ("frequency_penalty", "is taken off them for each time, 0 for none"),
        ("presence_penalty", "is taken off them once, 0 for none"),
    ):
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=float,
            default=getattr(_SAMPLING, name),
            metavar="X",
            help=f"{what} (default: %(default)s)",
        )
    parser.add_argument(
        "--repeat-last-n",
        type=whole(0),
        default=_SAMPLING.repeat_last_n,
        metavar="N",
        help="tokens of the answer that penalties look back at (default: %(default)s)",
    )
    parser.add_argument(
        "--temp",
        type=float,
        default=_SAMPLING.temp,
        metavar="T",
        help="sampling temperature, 0 for greedy (default: %(default)s)",
    )
    for name, kind, what in (
        ("--top-k", whole(0), "draw among the N likeliest tokens, 0 for all"),
        ("--top-p", float, "… that make up this probability"),
        ("--min-p", float, "… that have at least this share of the likeliest's probability"),
    ):
        parser.add_argument(
            name,
            type=kind,
            default=getattr(_SAMPLING, name[2:].replace("-", "_")),
            metavar="N" if kind is not float else "P",
            help=f"{what} (default: %(default)s)",
        )
    parser.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end the answer before this text; may be repeated",
    )
    parser.add_argument(
        "--seed", type=whole(0), default=_SAMPLING.seed, metavar="N", help="seed of the draw"
    )


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """-p."""
    parser.add_argument(
        "-p", "--prompt", default=DEFAULT_PROMPT, metavar="TEXT", help="default: %(default)s"
    )


def add_predict(parser: argparse._ActionsContainer, default: int) -> None:
    """-n."""
    parser.add_argument(
        "-n",
        "--predict",
        type=whole(1),
        default=default,
        metavar="N",
        help="at most this many tokens (default: %(default)s)",
    )


def draw_from(args: argparse.Namespace) -> SamplingConfig:
    """The values of add_draw's arguments as a SamplingConfig; AtpError for a value out of range."""
    return SamplingConfig(
        n_predict=args.predict,
        temp=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        seed=args.seed,
        stop=tuple(args.stop or ()),
        repeat_penalty=args.repeat_penalty,
        frequency_penalty=args.frequency_penalty,
        presence_penalty=args.presence_penalty,
        repeat_last_n=args.repeat_last_n,
    )


def policy_from(args: argparse.Namespace) -> PolicyLike:
    """The plan of --policy, --keep and --budget; None if they are not given: the sidecar decides.

    Raises:
        PlanError: a text is no policy; or --keep or --budget has no cut to apply to.
    """
    budget = None if args.budget is None else parse_budget(args.budget)
    plan = parse_plan(args.policy, keep=args.keep, budget=budget)
    if args.keep is not None and all(cut.policy in ("none", ATP) for cut in plan):
        raise PlanError(
            "--keep needs a policy that keeps a fixed fraction, for instance --policy fastv; "
            "policy atp takes --budget"
        )
    if uses_atp(plan) and atp_file(args.model, args.atp) is None:
        option = "--policy atp" if args.policy else "--budget"
        raise PlanError(f"{option} needs the model's ATP sidecar; give it with --atp FILE")
    return None if args.policy is None and budget is None else plan


def fetch_model(args: argparse.Namespace) -> None:
    """Sets -m, --mmproj and --atp to the files that -hf names; does nothing without -hf.

    Raises:
        ModelError: -m is given too, or a file cannot be found or fetched.
    """
    if getattr(args, "hf_repo", None) is None:
        return
    if args.model is not None:
        raise ModelError("-m and -hf both name a model; give one of them")
    model, mmproj, atp = hub_model(args.hf_repo)
    args.model = str(model)
    args.mmproj = args.mmproj or str(mmproj)
    args.atp = args.atp or (None if atp is None else str(atp))


def open_captioner(
    args: argparse.Namespace, output: Output, policy: PolicyLike, *, n_threads_encode: int = 0
) -> Captioner:
    """The captioner that the arguments describe; prints a note if it is the demo model."""
    model_files(args.model, args.mmproj)
    if args.model is None:
        output.note(
            f"using the built-in demo model {DEMO_MODEL}; -m MODEL --mmproj FILE takes another"
        )
    captioner = Captioner(
        args.model,
        mmproj=args.mmproj,
        atp=args.atp,
        policy=policy,
        n_gpu_layers=args.n_gpu_layers,
        n_ctx=args.ctx_size,
        n_threads=args.threads,
        n_threads_encode=n_threads_encode,
        flash_attn=args.flash_attn,
        type_k=args.cache_type_k,
        type_v=args.cache_type_v,
    )
    if args.n_gpu_layers > 0 and all(device == "CPU" for device in captioner.info.devices):
        output.note(
            f"note: -ngl {args.n_gpu_layers} does nothing, for this build finds no accelerator; "
            "docs/guide/install.md says how to build with one"
        )
    return captioner


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
