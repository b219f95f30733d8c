"""A preemption on purpose: signal a submitted run, and see that it goes on where it stopped."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.errors import ExitCode
from pipelines.tracking.jsonl import read_events

_POLL_SECONDS = 1.0
# a node refuses a start whose credential is as old as those it revoked at the requeue, in seconds
_REVOKED_SECONDS = 3.0
# SLURM lets a requeued job wait two minutes; others may be in front of it
_PATIENCE_SECONDS = 3600.0


def rehearse(
    folder: Path,
    *,
    after_seconds: float,
    send_signal: Callable[[], None],
    hurry: Callable[[], None],
    patience_seconds: float = _PATIENCE_SECONDS,
) -> int:
    """0 if the run of this folder was signalled, stopped and resumed at the step it had saved.

    after_seconds: of training. hurry: called while the run waits for its next start.
    """
    log = _Log(folder, patience_seconds)
    print(f"rehearsal: waiting for {folder} to start", flush=True)
    if log.wait_for("start") is None:
        return _failed("the run did not start")
    time.sleep(after_seconds)
    print(f"rehearsal: signal after {after_seconds:g} s", flush=True)
    send_signal()
    stopped = log.wait_for("stopped")
    if stopped is None:
        return _failed("the run did not stop at the signal; train longer, or signal earlier")
    print(f"rehearsal: saved and left at step {stopped['step']} ({stopped['signal']})", flush=True)
    resumed = log.wait_for("resume", meanwhile=hurry)
    if resumed is None or resumed["step"] != stopped["step"]:
        return _failed(f"the run did not resume at step {stopped['step']}; got {resumed}")
    away = resumed["time"] - stopped["time"]
    print(f"rehearsal: resumed at step {resumed['step']} after {away:.0f} s: passed", flush=True)
    return int(ExitCode.FINISHED)


def signal_slurm_job(job_id: str) -> None:
    """Send all ranks what they get when the time limit is near."""
    subprocess.run(["scancel", "--signal=USR2", job_id], check=True)


def start_slurm_job_now(job_id: str) -> None:
    """Spare a requeued job the two minutes that SLURM lets it wait; running ones ignore it."""
    words = ["scontrol", "update", f"JobId={job_id}", "StartTime=now"]
    subprocess.run(words, check=False, capture_output=True)


class _Log:
    """The events of a run, each of them waited for after the one before."""

    def __init__(self, folder: Path, patience_seconds: float) -> None:
        self._folder = folder
        self._patience_seconds = patience_seconds
        self._num_seen = len(read_events(folder))

    def wait_for(
        self, kind: str, *, meanwhile: Callable[[], None] = lambda: None
    ) -> dict[str, Any] | None:
        """The next event of this kind; None if the run ends before it, or in all patience."""
        began = time.monotonic()
        while time.monotonic() < began + self._patience_seconds:
            for index, event in enumerate(read_events(self._folder)[self._num_seen :]):
                if event["event"] == kind:
                    self._num_seen += index + 1
                    return event
                if event["event"] in ("finished", "failed"):
                    return None
            if time.monotonic() > began + _REVOKED_SECONDS:
                meanwhile()
            time.sleep(_POLL_SECONDS)
        return None


def _failed(why: str) -> int:
    print(f"rehearsal: failed: {why}", flush=True)
    return 1
