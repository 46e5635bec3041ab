"""A process that tries cases until it ends or is ended: one line for each, "NUMBER OUTCOME"."""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from pathlib import Path

from atp_cpp import AtpError

from .cases import Cases

MEMORY = 8 << 30  # bytes of address space; a case that asks for more is told so
LONGEST = 500  # characters of a message


def outcome(cases: Cases, number: int) -> dict[str, object]:
    """What came of one case; "finding" if it may not be."""
    case = cases.case(number)
    try:
        case.act()
    except AtpError as error:
        text = str(error)
        row: dict[str, object] = {"n": number, "kind": case.kind, "came": "refused"}
        if len(text) > LONGEST:
            row |= {"finding": "long message", "what": text[:300], "length": len(text)}
        elif "\n" in text:
            row |= {"finding": "two lines", "what": text}
        return row
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name})"
        return {"n": number, "kind": case.kind, "came": "raised", "finding": "class", "what": what}
    return {"n": number, "kind": case.kind, "came": "taken"}


def main(folder: str, seed: str, first: str, last: str, pipe: str) -> None:
    """Cases `first` to `last`, the last one left out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = int(pipe)

    def say(row: dict[str, object]) -> None:
        os.write(out, json.dumps(row).encode() + b"\n")

    cases = Cases(Path(folder), int(seed))
    say({"ready": True})
    for number in range(int(first), int(last)):
        say(outcome(cases, number))


if __name__ == "__main__":
    main(*sys.argv[1:])
