"""One line per step in metrics.jsonl, one line per event in events.jsonl; never switched off.

A run that resumes from step s, or goes back to it, computes the steps after s again. Their old
rows move to metrics.superseded.jsonl, so that metrics.jsonl always has one row per step and nothing
is lost.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.tracking.base import Row


class JsonlTracker:
    """Appends rows to metrics.jsonl; every call leaves whole lines behind."""

    def __init__(self, folder: Path, *, restart: int, resumed_at_step: int) -> None:
        self._path = folder / "metrics.jsonl"
        self._restart = restart
        _set_aside(self._path, after_step=resumed_at_step)

    def log_rows(self, rows: Sequence[Row]) -> None:
        lines = [json.dumps({**row, "restart": self._restart}) + "\n" for row in rows]
        _append(self._path, "".join(lines))

    def log_pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Nothing: the files are in the run folder already."""

    def go_back(self, step: int) -> None:
        _set_aside(self._path, after_step=step)

    def finish(self) -> None:
        """Nothing: every row is on its way to the disk since it was logged."""


class EventLog:
    """What happened to a run, with wall time: starts, checkpoints, signals, damage, the end."""

    def __init__(self, folder: Path, *, restart: int) -> None:
        self.folder = folder
        self._path = folder / "events.jsonl"
        self._restart = restart

    def write(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Append one event."""
        event = {"time": round(time.time(), 3), "event": kind, "restart": self._restart, **facts}
        _append(self._path, json.dumps(event) + "\n")


def count_starts(folder: Path) -> int:
    """How often a run was started before, according to its events."""
    return sum(row.get("event") == "start" for row in _read_lines(folder / "events.jsonl"))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run in order of step, one per step; of two for a step the later one."""
    rows = {row["step"]: row for row in _read_lines(folder / "metrics.jsonl")}
    return [rows[step] for step in sorted(rows)]


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run in order of time."""
    return _read_lines(folder / "events.jsonl")


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            # a process that was killed while it wrote leaves half a line
            continue
    return rows


def _set_aside(path: Path, *, after_step: int) -> None:
    """Move rows of steps that are computed again to the file beside, whole lines only."""
    if not path.is_file():
        return
    rows = _read_lines(path)
    kept = [row for row in rows if row["step"] <= after_step]
    superseded = [row for row in rows if row["step"] > after_step]
    if superseded:
        lines = "".join(json.dumps(row) + "\n" for row in superseded)
        _append(path.with_name("metrics.superseded.jsonl"), lines)
    partial = path.with_name(".metrics.jsonl.partial")
    with partial.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in kept)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
