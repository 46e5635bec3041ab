"""``atp-cpp eval QUESTIONS.jsonl``: accuracy and tokens of several plans on labelled questions."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

from atp_cpp.captioner import Captioner
from atp_cpp.cli.arguments import (
    add_force,
    add_model_arguments,
    add_policy_arguments,
    add_predict,
    open_captioner,
    policy_from,
    whole,
)
from atp_cpp.cli.terminal import EXIT_INTERRUPTED, EXIT_OK, EXIT_SOME_FAILED, Output
from atp_cpp.errors import AtpError
from atp_cpp.evaluation.evaluate import (
    EvalRow,
    Question,
    evaluate,
    hash_config,
    load_questions,
    read_plans,
)
from atp_cpp.evaluation.report import blind_accuracy, markdown, provenance, report, summarise
from atp_cpp.evaluation.rows_file import EvalRowsFile
from atp_cpp.options.plan import CutSpec, SamplingConfig, plan_text
from atp_cpp.storage.digest import file_sha256
from atp_cpp.storage.output_files import check_no_input, check_replaces, is_json_report

_DEFAULT_PREDICT = 32


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "eval", help="accuracy against tokens on labelled questions", allow_abbrev=False
    )
    parser.add_argument(
        "questions", metavar="JSONL", help='lines {"image", "question", "answer", "kind"}'
    )
    parser.add_argument(
        "--compare",
        action="append",
        metavar="PLAN",
        help="an alternative: cuts joined by +, or none. Repeat it for several",
    )
    parser.add_argument("--limit", type=whole(1), metavar="N", help="ask a sample of N questions")
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="seed of that sample (default: 0)"
    )
    parser.add_argument(
        "--rows", metavar="JSONL", help="append each reply here; go on where an earlier run ended"
    )
    parser.add_argument("--out", metavar="JSON", help="write the table with its provenance here")
    add_force(parser)
    add_predict(parser, _DEFAULT_PREDICT)
    add_policy_arguments(parser)
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, output: Output) -> int:
    """Asks all questions, and prints a markdown table."""
    if args.compare and (args.policy or args.keep is not None or args.budget is not None):
        raise AtpError(
            "give either --policy and --budget (one plan) or --compare (alternatives), not both"
        )
    policy = policy_from(args)
    questions_file = Path(args.questions)
    questions = load_questions(questions_file, limit=args.limit, seed=args.seed)
    for path in (args.rows, args.out):
        if path is not None and not Path(path).parent.is_dir():
            raise AtpError(f"{path}: cannot be written; {Path(path).parent} is not a directory")
    inputs = [args.questions, args.model, args.mmproj, args.atp]
    check_no_input("--rows", args.rows, inputs)
    check_no_input("--out", args.out, [*inputs, args.rows])
    check_replaces("--out", args.out, force=args.force, is_ours=is_json_report)
    with open_captioner(args, output, policy) as captioner:
        plans = read_plans(args.compare, captioner) if args.compare else [captioner.plan]
        rows, complete = _ask_all(args, output, captioner, questions, plans)
        facts = _facts(args, captioner, len(questions), plans, complete)
    summaries = summarise(rows)
    blind = blind_accuracy(questions)
    output.result(markdown(summaries))
    output.note(f"without an image, the words of the questions alone give {100 * blind:.1f} %")
    if args.out is not None:
        text = json.dumps(
            report(summaries, provenance(**facts), blind), indent=2, ensure_ascii=False
        )
        Path(args.out).write_text(text + "\n", encoding="utf-8")
    if not complete:
        output.note(f"interrupted after {len(rows)} of {len(questions) * len(plans)} replies")
        return EXIT_INTERRUPTED
    failed = [row for row in rows if row.error]
    if failed:
        output.note(f"{len(failed)} of {len(rows)} replies failed")
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _ask_all(
    args: argparse.Namespace,
    output: Output,
    captioner: Captioner,
    questions: list[Question],
    plans: list[tuple[CutSpec, ...]],
) -> tuple[list[EvalRow], bool]:
    """(rows, whether the rows are complete)."""
    sampling = SamplingConfig(n_predict=args.predict)
    config_hash = hash_config(
        file_sha256(captioner.model),
        file_sha256(captioner.mmproj),
        sampling,
        atp_sha256="" if captioner.atp is None else file_sha256(captioner.atp),
    )
    kept = None if args.rows is None else EvalRowsFile(args.rows)
    rows: list[EvalRow] = []
    total = len(questions) * len(plans)
    try:
        with kept or contextlib.nullcontext():
            replies = evaluate(
                captioner,
                questions,
                plans,
                image_root=Path(args.questions).parent,
                sampling=sampling,
                config_hash=config_hash,
                done=None if kept is None else kept.done,
            )
            with output.progress(replies, total, unit="reply") as items:
                for row, is_new in items:
                    rows.append(row)
                    if is_new and kept is not None:
                        kept.append(row)
                    if row.error:
                        output.error(row.error)
    except KeyboardInterrupt:
        return rows, False
    return rows, True


def _facts(
    args: argparse.Namespace,
    captioner: Captioner,
    n_questions: int,
    plans: list[tuple[CutSpec, ...]],
    complete: bool,
) -> dict[str, object]:
    return {
        "model": captioner.model.name,
        "model_sha256": file_sha256(captioner.model),
        "mmproj": captioner.mmproj.name,
        "mmproj_sha256": file_sha256(captioner.mmproj),
        "atp": None if captioner.atp is None else captioner.atp.name,
        "atp_sha256": None if captioner.atp is None else file_sha256(captioner.atp),
        "devices": list(captioner.info.devices),
        "questions": Path(args.questions).name,
        "questions_sha256": file_sha256(Path(args.questions)),
        "n_questions": n_questions,
        "limit": args.limit,
        "seed": args.seed,
        "n_predict": args.predict,
        "plans": [plan_text(plan) for plan in plans],
        "complete": complete,
    }
