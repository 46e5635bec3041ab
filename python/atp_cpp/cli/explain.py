"""``atp-cpp explain IMAGE --out PNG``: a picture of which patches each cut kept."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from atp_cpp.cli.arguments import (
    add_force,
    add_model_arguments,
    add_policy_arguments,
    add_prompt_arguments,
    draw_from,
    open_captioner,
    policy_from,
)
from atp_cpp.cli.caption import cost_line
from atp_cpp.cli.terminal import EXIT_OK, Output
from atp_cpp.errors import AtpError, PlanError
from atp_cpp.images.load import load_image
from atp_cpp.inspect.picture import render
from atp_cpp.storage.atomic import replacing
from atp_cpp.storage.output_files import check_no_input, check_replaces


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "explain", help="draw which patches each cut kept", allow_abbrev=False
    )
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("--out", required=True, metavar="PNG", help="picture to write")
    add_force(parser)
    add_prompt_arguments(parser)
    add_policy_arguments(parser)
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, output: Output) -> int:
    """Captions the image, draws the patches that were kept, and prints the caption."""
    plan = policy_from(args)
    sampling = draw_from(args)
    out = Path(args.out)
    check_out(out)
    check_no_input("--out", args.out, [args.image, args.model, args.mmproj, args.atp])
    check_replaces("--out", args.out, force=args.force)
    pixels = load_image(args.image)
    with open_captioner(args, output, plan) as captioner:
        if not captioner.plan:
            raise PlanError(
                "policy none drops nothing, so there is nothing to draw; give another with "
                "--policy, or a sidecar with --atp"
            )
        caption = captioner.caption(pixels, args.prompt, sampling=sampling)
    write_picture(render(pixels, caption.report, caption.plan, views=caption.views), out)
    output.result(caption.text)
    output.note(cost_line(caption))
    output.note(f"wrote {out}")
    return EXIT_OK


def check_out(out: Path) -> None:
    """Raises AtpError before any work is done if a picture could not be written to `out`."""
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise AtpError(f"{out}: expected a name that ends in .png, .jpg or .webp")
    if out.is_dir() or not out.parent.is_dir():
        raise AtpError(f"{out}: cannot be written; {out.parent} must be a directory")


def write_picture(picture: Image.Image, out: Path) -> None:
    """Writes by temporary file and rename, so that a broken run leaves no half picture."""
    kind = Image.registered_extensions()[out.suffix.lower()]
    try:
        with replacing(out) as part:
            picture.save(part, format=kind)
    except OSError as error:
        raise AtpError(f"{out}: cannot be written: {error.strerror or error}") from error
