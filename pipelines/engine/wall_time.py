"""The end of the job, known beforehand, and the save that must fit in before it.

    start ------------- training ------------|-- last step --|-- save --|-- margin --| end of job
                                             ^ stop here, as if a signal had come

The batch scripts pass on what the cluster says: `SLURM_JOB_END_TIME` in seconds since 1970, and
`XDEC_KILL_WAIT`, the seconds between TERM and KILL. Without them only signals stop a run.
"""

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ConfigError

_PROBE_BYTES = 64 * 2**20
# a save may take twice as long as the last one, on a file system that others use too
_CAUTION = 2.0


@dataclass(frozen=True, kw_only=True)
class JobLimits:
    """What the cluster grants a job; None where it is not known.

    end: of the job, in seconds since 1970. kill_wait: seconds between TERM and KILL.
    """

    end: float | None = None
    kill_wait: float | None = None


def read_limits(environment: Mapping[str, str]) -> JobLimits:
    """The limits of this job, from environment variables alone.

    Raises:
        ConfigError: a variable is not a number.
    """
    return JobLimits(
        end=_seconds(environment, "SLURM_JOB_END_TIME"),
        kill_wait=_seconds(environment, "XDEC_KILL_WAIT"),
    )


class WallTime:
    """Watches the clock of a job for the loop, which tells it how long steps and saves take.

    margin_seconds: left between the end of the save and the end of the job, for the batch script.
    save_seconds: of one save, as it was measured before, or estimated.
    """

    def __init__(
        self,
        limits: JobLimits,
        *,
        margin_seconds: float,
        save_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits = limits
        self.save_seconds = save_seconds
        self._margin_seconds = margin_seconds
        self._step_seconds = 0.0
        self._clock = clock
        self._last_step: float | None = None

    def saw_step(self) -> None:
        """A step ends now; the longest one counts."""
        now = self._clock()
        if self._last_step is not None:
            self._step_seconds = max(self._step_seconds, now - self._last_step)
        self._last_step = now

    def saw_save(self, seconds: float) -> None:
        """A save took so long; it is no step."""
        self.save_seconds = max(self.save_seconds, seconds)
        self._last_step = None

    @property
    def needed_seconds(self) -> float:
        """From the decision to stop to the end of the job."""
        return self._step_seconds + _CAUTION * self.save_seconds + self._margin_seconds

    def seconds_left(self) -> float | None:
        """Until the job ends; None if that is not known."""
        return None if self.limits.end is None else self.limits.end - self._clock()

    def is_nearly_over(self) -> bool:
        """Whether another step could cost the save."""
        left = self.seconds_left()
        return left is not None and left <= self.needed_seconds

    def complaints(self) -> list[str]:
        """What is too short, each with what to change."""
        left, wait, save = self.seconds_left(), self.limits.kill_wait, self.save_seconds
        found = []
        if left is not None and left <= self.needed_seconds:
            found.append(
                f"wall time: {left:.0f} s are left for a run that needs "
                f"{self.needed_seconds:.0f} s to stop (a save takes about {save:.1f} s), so every "
                "start of this job takes one step only. Ask for more with --time, or lower "
                "preemption.margin_seconds."
            )
        if wait is not None and save > wait:
            found.append(
                f"wall time: a save takes about {save:.1f} s, but this cluster kills {wait:.0f} s "
                "after it preempts (KillWait), so a preempted job continues from its newest "
                "periodic checkpoint. Lower checkpoint.every_steps by that."
            )
        return found


def estimate_save_seconds(folder: Path, num_bytes: int) -> float:
    """What writing so many bytes into the folder would take, from writing some of them."""
    probed = min(num_bytes, _PROBE_BYTES)
    path = folder / f".probe-{secrets.token_hex(4)}"
    block = bytes(min(probed, 2**20))
    began = time.perf_counter()
    try:
        with path.open("wb") as file:
            for _ in range(max(1, probed // max(1, len(block)))):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
    return (time.perf_counter() - began) * num_bytes / max(1, probed)


def _seconds(environment: Mapping[str, str], name: str) -> float | None:
    text = environment.get(name, "")
    try:
        return float(text) if text else None
    except ValueError:
        raise ConfigError(
            f"wall time: {name} must be a number of seconds; got {text!r}. "
            "Unset it: without it only signals stop the run."
        ) from None
