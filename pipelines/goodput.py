"""Goodput: which share of the time since a run's first start became steps that count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Seconds since the first start, and those of them that kept steps took."""

    wall_seconds: float
    kept_seconds: float
    num_starts: int

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return min(1.0, self.kept_seconds / self.wall_seconds) if self.wall_seconds > 0 else 0.0


def goodput(
    events: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], *, until: float
) -> Goodput | None:
    """The goodput of a run up to a moment in seconds since 1970; None before its first start.

    Lost are: waiting in the queue, starting, steps that were taken again after a restart or a
    rollback, and steps that were left out. Time between two logging steps is that of the steps
    between them, saving and drawing included.
    """
    starts = [event["time"] for event in events if event["event"] == "start"]
    if not starts:
        return None
    kept, num_steps = 0.0, 0
    for row in rows:
        num_steps += "left_out" not in row
        if "seconds_per_step" in row:
            kept += num_steps * row["seconds_per_step"]
            num_steps = 0
    return Goodput(wall_seconds=until - starts[0], kept_seconds=kept, num_starts=len(starts))
