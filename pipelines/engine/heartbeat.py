"""Signs of life: one small file per rank, replaced every few seconds while its process runs.

    heartbeat/rank00000.json   {rank, host, pid, restart, step, time, step_time, ...}

`time` is when the file was written, `step_time` when the last step ended: a process that lives
and does not move has a new `time` and an old `step_time`.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FOLDER = "heartbeat"


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """What one rank says; times in seconds since 1970.

    median_seconds: of the last steps, 0 = there was none. stalled_seconds: since the last step
    ended, where that is too long; else 0.
    """

    rank: int
    host: str
    pid: int
    restart: int
    step: int
    time: float
    step_time: float
    median_seconds: float = 0.0
    stalled_seconds: float = 0.0


class HeartbeatFile:
    """The file of this rank in a run folder."""

    def __init__(self, folder: Path, *, rank: int, restart: int) -> None:
        self._path = folder / FOLDER / f"rank{rank:05d}.json"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._rank, self._restart = rank, restart

    def write(
        self, *, step: int, step_time: float, median_seconds: float, stalled_seconds: float
    ) -> None:
        """Replace the file in one instant; what a crash of the machine leaves does not matter."""
        heartbeat = Heartbeat(
            rank=self._rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            restart=self._restart,
            step=step,
            time=round(time.time(), 3),
            step_time=round(step_time, 3),
            median_seconds=round(median_seconds, 4),
            stalled_seconds=round(stalled_seconds, 1),
        )
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.write_text(json.dumps(asdict(heartbeat)))
        partial.replace(self._path)


def read_heartbeats(folder: Path) -> list[Heartbeat]:
    """The last sign of life of every rank of the newest start, in order of rank."""
    names = {field.name for field in fields(Heartbeat)}
    found = []
    for path in sorted((folder / FOLDER).glob("rank*.json")):
        values = json.loads(path.read_text())
        found.append(Heartbeat(**{name: values[name] for name in names & values.keys()}))
    newest = max((each.restart for each in found), default=0)
    return [each for each in found if each.restart == newest]
