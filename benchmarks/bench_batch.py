r"""Captions an hour: batches of pruned captions against llama.cpp's own best, interleaved.

Contestants: ours with a plan, ours whole, llama.cpp's libraries in a loop (mtmd-loop), and
llama-server with each number of slots given. All read the same JPEG files and write the same number
of tokens. In each round every contestant captions its images, in turn; ratios are taken within a
round; the table shows medians, and the least and the most in brackets.

    cmake -S benchmarks/baselines -B b -DLLAMA_DIR=LLAMA_CPP_SOURCE && cmake --build b
    python benchmarks/bench_batch.py --baselines b -m M.gguf --mmproj P.gguf \
        --plan fastv:keep=0.175,after=2 --slots 4 8 --images 8 --rounds 3 --json J
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

from contestants import Job, Loop, Ours, Ran, Server
from photos import write_pictures
from provenance import provenance

from atp_cpp import Captioner
from atp_cpp.options.plan import SamplingConfig
from atp_cpp.prompts.prompt import ChatPrompt

PORT = 18090
SAME_PROMPT = 2  # tokens that prompts may differ by: llama-server renders white space its own way
QUESTION = "Describe the image."
TEXT_ROOM = 64  # rows of text in the prompt, at most
PARTS = ("encode", "prefill", "decode", "rest", "cpu")


class Contestant(Protocol):
    """One way to caption a list of images."""

    name: str

    def run(self, paths: Sequence[Path]) -> Ran: ...

    def close(self) -> None: ...


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--baselines", type=Path, required=True, help="build folder of benchmarks/baselines")
    add("-m", "--model", help="the demo model if not given")
    add("--mmproj")
    add("--atp")
    add("--plan", action="append", default=[], help="ours pruned; may be repeated")
    add("--no-whole", action="store_true", help="leave out ours without pruning")
    add("--batch-size", type=int, nargs="+", default=[8])
    add("--overlap", choices=("auto", "on", "off"), default="auto")
    add("--slots", type=int, nargs="*", default=[4], help="llama-server's, one server each")
    add("--server-options", default="", help="for llama-server, as one text")
    add(
        "--encode-threads",
        type=int,
        default=0,
        help="ours once more, these of --threads for the encoder, which then works beside the rest",
    )
    add("--ubatch", type=int, default=512)
    add("--images", type=int, default=8)
    add("--loop-images", type=int, help="the loop's; each costs it the same")
    add("--server-images", type=int, help="llama-server's, or one a slot if that is more")
    add("--kind", choices=("photo", "drawn"), default="photo")
    add("--pictures", type=Path, help="folder to keep the pictures in")
    add("--natural", action="store_true", help="captions end where the model ends them")
    add("--n-predict", type=int, default=64)
    add("--rounds", type=int, default=3)
    add("--apart", action="store_true", help="each is loaded for its turn: where not all fit")
    add("--threads", type=int, default=2)
    add("--json", type=Path)
    return parser.parse_args()


def open_ours(args: argparse.Namespace, n_threads_encode: int) -> Captioner:
    """Ours, loaded; `n_threads_encode` of the threads are the encoder's, if any."""
    return Captioner(
        args.model, mmproj=args.mmproj, atp=args.atp, n_threads=args.threads - n_threads_encode,
        n_threads_encode=n_threads_encode, n_ubatch=args.ubatch, self_test=False,
        policy=args.plan[0] if args.plan else None,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What all contestants are told, from ours: files, prompt, and its number of tokens."""

    model: str
    mmproj: str
    prompt: str
    n_image_tokens: int
    n_prompt: int

    @classmethod
    def of(cls, captioner: Captioner, image: Path) -> Facts:
        """By one caption of one token."""
        report = captioner.caption(image, sampling=SamplingConfig(n_predict=1)).report
        return cls(
            model=str(captioner.model),
            mmproj=str(captioner.mmproj),
            prompt=ChatPrompt.for_model(captioner.info).render(QUESTION, 1),
            n_image_tokens=report.n_image_tokens,
            n_prompt=report.n_prompt,
        )


def contestants(
    args: argparse.Namespace, facts: Facts, opened: Callable[[int], Captioner]
) -> Iterator[Contestant]:
    """All that take part, each loaded when it is drawn; first ours with the first plan.

    `opened` gives ours for a number of threads of the encoder's own.
    """
    job = Job(
        model=facts.model,
        mmproj=facts.mmproj,
        question=QUESTION,
        n_predict=args.n_predict,
        natural=args.natural,
        n_threads=args.threads,
    )
    ctx = -(-(facts.n_image_tokens + TEXT_ROOM + args.n_predict) // 256) * 256
    options = {} if args.overlap == "auto" else {"overlap": args.overlap == "on"}
    plans = args.plan + ([] if args.no_whole else ["none"])
    ways = [(0, "")] + ([(args.encode_threads, "encoder beside")] if args.encode_threads else [])
    for n_threads_encode, how in ways:
        for plan in plans:
            for size in args.batch_size:
                yield Ours(job, plan, size, opened(n_threads_encode), how, **options)
    yield Loop(args.baselines / "mtmd-loop", job, facts.prompt, ctx, args.ubatch)
    program = args.baselines / "bin" / "llama-server"
    for k, slots in enumerate(args.slots):
        yield Server(program, job, slots, ctx, args.server_options, PORT + k)


def turns(
    draw: Callable[[], Iterator[Contestant]], warm_up: list[Path], *, n_rounds: int, apart: bool
) -> Generator[Contestant, None, None]:
    """Every contestant once a round, loaded and warmed up: for all rounds, or for this turn."""
    if apart:
        for _ in range(n_rounds):
            for one in draw():
                with closing(one):
                    one.run(warm_up)
                    yield one
        return
    with ExitStack() as stack:
        todo = []
        for one in draw():
            todo.append(one)
            stack.callback(one.close)
        for one in todo:
            one.run(warm_up)
        for _ in range(n_rounds):
            yield from todo


def n_images_of(one: Contestant, args: argparse.Namespace) -> int:
    """How many images it captions a round."""
    if isinstance(one, Loop):
        return int(args.loop_images or args.images)
    if isinstance(one, Server):
        return max(args.server_images or args.images, one.n_slots)
    return int(args.images)


def measure(
    todo: Iterator[Contestant], args: argparse.Namespace, paths: list[Path], n_prompt: int
) -> dict[str, list[Ran]]:
    """All rounds, by the contestants' names; ours first."""
    runs: dict[str, list[Ran]] = {}
    for one in todo:
        if isinstance(one, (Loop, Server)) and abs(one.n_prompt - n_prompt) > SAME_PROMPT:
            raise RuntimeError(
                f"{one.name}: a prompt of {one.n_prompt} tokens, and ours has {n_prompt}"
            )
        ran = one.run(paths[: n_images_of(one, args)])
        mine = runs.setdefault(one.name, [])
        mine.append(ran)
        print(
            f"round {len(mine)}: {ran.wall / ran.n_images:.3f} s an image, "
            f"{ran.cpu / ran.n_images:.3f} of CPU, {one.name}",
            file=sys.stderr,
            flush=True,
        )
    return runs


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def row_of(name: str, mine: list[Ran], base: dict[str, list[Ran]]) -> dict[str, Any]:
    """A contestant's numbers; `base` holds the runs that ratios are taken to, by their short name.

    A ratio is of captions an hour, taken round by round.
    """
    per_image = [ran.wall / ran.n_images for ran in mine]
    row: dict[str, Any] = {
        "name": name,
        "captions_per_hour": spread([3600 / seconds for seconds in per_image]),
        "s_per_image": statistics.median(per_image),
        "tokens_per_image": mine[0].n_tokens / mine[0].n_images,
    }
    for part in PARTS:
        row[part] = statistics.median([getattr(ran, part) / ran.n_images for ran in mine])
    for short, runs in base.items():
        times = [ran.wall / ran.n_images for ran in runs]
        row[f"to_{short}"] = spread([b / a for a, b in zip(per_image, times, strict=True)])
    return row


def best_of(runs: dict[str, list[Ran]]) -> str:
    """Name of llama.cpp's fastest, by the median."""
    names = [name for name in runs if name.startswith("llama")]
    return min(names, key=lambda n: statistics.median([r.wall / r.n_images for r in runs[n]]))


def same_captions(runs: dict[str, list[Ran]]) -> dict[str, float]:
    """Share of captions that are letter for letter the loop's, per contestant."""
    loop = next(name for name in runs if "loop" in name)
    said = runs[loop][0].captions
    return {
        name: sum(a == b for a, b in zip(ran[0].captions, said, strict=False)) / len(said)
        for name, ran in runs.items()
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """A markdown table."""
    heads = ("", "captions/h", "s an image", *PARTS, "/ best of llama.cpp", "/ loop")
    print(f"| {' | '.join(heads)} |\n|---|{'---:|' * (len(heads) - 1)}")
    for row in rows:
        ratios = [row["to_best"], row["to_loop"]]
        cells = [row["name"], f"{row['captions_per_hour']['median']:.0f}"]
        cells += [f"{row['s_per_image']:.2f}", *(f"{row[part]:.2f}" for part in PARTS)]
        cells += [f"{r['median']:.2f} ({r['least']:.2f}-{r['most']:.2f})" for r in ratios]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Make the pictures, load everything, measure, print, save."""
    args = arguments()
    with ExitStack() as stack:
        folder = args.pictures or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        most = max(args.images, args.loop_images or 0, args.server_images or 0, *args.slots)
        paths = write_pictures(folder, most, kind=args.kind)
        opened: Callable[[int], Captioner] = partial(open_ours, args)
        if not args.apart:
            opened = cache(opened)  # plans share a loaded model
        captioner = opened(0)
        facts = Facts.of(captioner, paths[0])
        if args.apart:
            captioner.close()
        draw = partial(contestants, args, facts, opened)
        todo = turns(draw, paths[:1], n_rounds=args.rounds, apart=args.apart)
        runs = measure(stack.enter_context(closing(todo)), args, paths, facts.n_prompt)
    best = best_of(runs)
    loop = next(name for name in runs if "loop" in name)
    base = {"best": runs[best], "loop": runs[loop]}
    rows = [row_of(name, mine, base) for name, mine in runs.items()]
    print_table(rows)
    print(f"\nllama.cpp's best: {best}. Captions equal to the loop's: {same_captions(runs)}")
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        for key in ("json", "baselines", "pictures"):
            settings.pop(key)
        for key in ("model", "mmproj", "atp"):
            settings[key] = Path(settings[key]).name if settings[key] else None
        record = {
            "what": "bench_batch",
            "provenance": provenance(Path(facts.model)),
            "settings": settings,
            "best": best,
            "same_captions_as_loop": same_captions(runs),
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
