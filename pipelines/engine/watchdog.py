"""A thread beside the loop of every rank: says that the rank lives, and notices when it stalls.

    loop:    beat(step)        beat(step)                      ... nothing
    thread:  ----o----------o----------o----------o-- stall: stacks, loader, NCCL --o--
                 heartbeat every few seconds

A rank that waits for another one stalls with it, so every rank writes its own stacks, and the one
that has no collective on its stack is the one to look at. Leaving with `ExitCode.HANG` lets a
batch script requeue the job from the newest checkpoint.
"""

import faulthandler
import json
import logging
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch.distributed as dist

from pipelines.config import ParallelConfig, WatchConfig
from pipelines.engine.heartbeat import HeartbeatFile
from pipelines.engine.skipped import Tell
from pipelines.errors import ExitCode

_log = logging.getLogger(__name__)
# steps whose median says how long a step takes
_NUM_DURATIONS = 50
# looks at the clock between two heartbeats
_LOOKS = 4


class Watchdog:
    """Watches one rank while it is entered; `beat` after every step.

    step: that the run starts after. loader_state: what the data stream was asked for last.
    tell: writes an event, on the main rank. hint: what a stall of this run may come from.
    """

    def __init__(
        self,
        folder: Path,
        config: WatchConfig,
        *,
        rank: int,
        restart: int,
        step: int,
        loader_state: Callable[[], Mapping[str, Any] | None],
        tell: Tell | None = None,
        hint: str = "",
    ) -> None:
        self._config, self._hint = config, hint
        self._prefix = folder / "logs" / f"stall.start{restart:03d}.rank{rank:05d}"
        self._file = HeartbeatFile(folder, rank=rank, restart=restart)
        self._rank, self._step = rank, step
        self._loader_state, self._tell = loader_state, tell
        self._durations: deque[float] = deque(maxlen=_NUM_DURATIONS)
        self._last, self._last_time = time.monotonic(), time.time()
        self._stalled_step: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        self._last, self._last_time = time.monotonic(), time.time()
        if self._config.heartbeat_seconds:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, step: int) -> None:
        """Say that a step ended, with everything that followed it."""
        now = time.monotonic()
        self._durations.append(now - self._last)
        self._step, self._last, self._last_time = step, now, time.time()

    @property
    def limit_seconds(self) -> float:
        """How long the next step may take."""
        if not self._durations:
            return self._config.stall_first_seconds
        longest = self._config.stall_factor * self._median()
        return max(longest, self._config.stall_min_seconds)

    def _median(self) -> float:
        # a copy, because the loop adds to it
        durations = list(self._durations)
        return statistics.median(durations) if durations else 0.0

    def _watch(self) -> None:
        next_heartbeat = 0.0
        while True:
            waited = time.monotonic() - self._last
            is_stalled = waited > self.limit_seconds
            if is_stalled and self._stalled_step != self._step:
                self._stalled_step = self._step
                self._report(waited)
            elif not is_stalled and self._stalled_step is not None:
                self._stalled_step = None
                self._tell_event("stall_over", {"step": self._step})
            if time.monotonic() >= next_heartbeat or self._done.is_set():
                next_heartbeat = time.monotonic() + self._config.heartbeat_seconds
                self._write_heartbeat(waited if is_stalled else 0.0)
            if self._done.is_set():
                return
            self._done.wait(self._config.heartbeat_seconds / _LOOKS)

    def _write_heartbeat(self, stalled_seconds: float) -> None:
        try:
            self._file.write(
                step=self._step,
                step_time=self._last_time,
                median_seconds=self._median(),
                stalled_seconds=stalled_seconds,
            )
        except OSError as error:
            # a full disk ends the run where it saves, not here
            _log.warning("no heartbeat: %s", error)

    def _report(self, waited: float) -> None:
        step, limit = self._step + 1, self.limit_seconds
        path = self._prefix.with_name(f"{self._prefix.name}.step{step:08d}.txt")
        _log.error(
            "rank %d: step %d has taken %.0f s, longer than %.0f s (watch.stall_factor, "
            "watch.stall_min_seconds); the stacks of all threads are in %s%s",
            *(self._rank, step, waited, limit, path, f". {self._hint}" * bool(self._hint)),
        )
        try:
            self._write_stall(path, step, waited)
        except OSError as error:
            _log.warning("no stacks in %s: %s", path, error)
        is_stopping = self._config.on_stall == "stop"
        facts = {"step": step, "rank": self._rank, "seconds": round(waited, 1), "limit": limit}
        self._tell_event("stall", {**facts, "stacks": path.name, "is_stopping": is_stopping})
        if is_stopping:
            self._leave(step, waited)

    def _write_stall(self, path: Path, step: int, waited: float) -> None:
        with path.open("w") as file:
            file.write(f"rank {self._rank}, step {step}, {waited:.1f} s since the last step\n\n")
            file.write(f"{self._hint}\n\n" * bool(self._hint))
            file.write("Stacks of all threads:\n")
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.write(f"\nData after the last batches: {json.dumps(self._loader_state())}\n")
            file.write("\nProcesses started by this one, with CPU seconds so far:\n")
            file.writelines(_describe_children())
        trace = _flight_recorder()
        if trace:
            path.with_suffix(".flight.pickle").write_bytes(trace)

    def _leave(self, step: int, waited: float) -> None:
        print(
            f"watchdog: step {step} has taken {waited:.0f} s; leaving with "
            f"{int(ExitCode.HANG)} without saving, as watch.on_stall=stop asks.",
            file=sys.stderr,
            flush=True,
        )
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(ExitCode.HANG)

    def _tell_event(self, kind: str, facts: Mapping[str, Any]) -> None:
        if self._tell is None:
            return
        try:
            self._tell(kind, facts)
        except OSError as error:
            _log.warning("no event %s: %s", kind, error)


def stall_hint(parallel: ParallelConfig, *, num_ranks: int) -> str:
    """What only such a run can wait for, else empty; other tasks on a rank are refused before."""
    shards_weights = parallel.backend == "deepspeed" and parallel.zero_stage == 3
    if not shards_weights or num_ranks == 1:
        return ""
    return (
        "Under parallel.zero_stage=3 every rank must run the same modules in the same order: one "
        "that runs another waits for ever for its weights. Compare the stacks of all ranks; where "
        "they are in different modules, give every rank the same kind of batch, or set "
        "parallel.zero_stage=2."
    )


def _describe_children() -> list[str]:
    """One line per worker process; a worker that waits uses no CPU, one that is stuck may."""
    lines = []
    for child in psutil.Process().children(recursive=True):
        try:
            seconds = sum(child.cpu_times()[:2])
            lines.append(f"  {child.pid} {child.name()} {child.status()} {seconds:.2f}\n")
        except psutil.Error as error:
            lines.append(f"  {child.pid} {error}\n")
    return lines or ["  none\n"]


def _flight_recorder() -> bytes:
    """NCCL's last collectives as PyTorch pickles them; nothing under other backends."""
    if not dist.is_initialized() or dist.get_backend() != "nccl":
        return b""
    # the only way to read it from Python
    from torch._C._distributed_c10d import _dump_nccl_trace  # type: ignore[attr-defined]

    return _dump_nccl_trace()
