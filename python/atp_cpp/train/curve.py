"""The run's figures: curve.csv, one row a step, and TensorBoard's file where that is installed."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atp_cpp.storage.atomic import part_of, replacing

FILE_NAME = "curve.csv"


class Curve:
    """Appends rows of numbers under fixed columns; `step` is the first."""

    def __init__(self, folder: Path, columns: Sequence[str], *, after_step: int) -> None:
        """Opens the file; rows of steps beyond `after_step` (of a run that crashed) are dropped.

        Args:
            folder: the file's.
            columns: after `step`; a value that a row lacks stays empty.
            after_step: steps done; 0 starts a new file.
        """
        path = folder / FILE_NAME
        kept = self._rows_up_to(path, after_step) if after_step else []
        self._columns = ["step", *columns]
        with (
            replacing(path, part=part_of(path), sync=False) as part,
            part.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        self._stream = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._stream, self._columns, lineterminator="\n")
        self._board = _tensorboard(folder)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One row, flushed."""
        shown = {name: f"{value:.6g}" for name, value in values.items()}
        self._writer.writerow({"step": step, **shown})
        self._stream.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes both files."""
        self._stream.close()
        if self._board is not None:
            self._board.close()

    def _rows_up_to(self, path: Path, step: int) -> list[dict[str, str]]:
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        return [row for row in rows if row["step"].isdigit() and int(row["step"]) <= step]


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
