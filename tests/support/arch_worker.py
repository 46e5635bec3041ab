"""Run the laws on one tiny model, in a process of its own: `python arch_worker.py FILE.gguf`.

stdout is one JSON object. stderr says what is being tried, one line each, so that the last line of
a process that died tells where.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it has no package

from support.arch_laws import examine


def main() -> int:
    """Examine the file named on the command line."""
    found = examine(Path(sys.argv[1]), lambda text: print(f"trying: {text}", file=sys.stderr))
    result = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name != "say"}
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
