"""Where the numbers and pictures of a run go."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

Row = Mapping[str, float | int]


class Tracker(Protocol):
    """Receives what a run measures; called on rank 0 only."""

    def log_rows(self, rows: Sequence[Row]) -> None:
        """Take one row per step, in order; every row has `step`."""

    def log_pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Take image files that show predictions after `step`."""

    def go_back(self, step: int) -> None:
        """Take rows after `step` again, as a run that was resumed from there would send them."""

    def finish(self) -> None:
        """Write what is still held back; nothing may follow."""
