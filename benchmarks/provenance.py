"""Where a number comes from: machine, build, model, day."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

import atp_cpp


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def provenance(model: Path) -> dict[str, object]:
    """Facts that a reader needs to repeat a measurement of `model`."""
    return {
        "date": datetime.date.today().isoformat(),
        "atp_cpp": atp_cpp.__version__,
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "model": model.name,
        "model_bytes": model.stat().st_size,
    }
