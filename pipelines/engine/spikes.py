"""Sudden jumps of a loss: how far it is above its own recent values, in standard deviations."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from pipelines.engine.skipped import Tell

# values that are seen before the next one is judged
_FEWEST = 16
# a series that hardly moves must not have a spike at its first move: share of its mean
_LEAST_DEVIATION = 1e-3
SpikeAction = Literal["off", "log", "skip", "rollback"]
_SKIPPING = ("skip", "rollback")


class Judgement(NamedTuple):
    """A loss, averaged over ranks, and how many deviations it is above the recent ones."""

    loss: float
    sigmas: float


class RollingZScore:
    """Mean and deviation of the last `window` finite values of one series."""

    def __init__(self, *, window: int, values: Sequence[float] = ()) -> None:
        self._values = deque(values, maxlen=window)

    @property
    def values(self) -> list[float]:
        """What the next value is compared with."""
        return list(self._values)

    def see(self, value: float, *, sigmas: float) -> float:
        """How many deviations a value is above the mean, 0 while there are too few to say.

        A value beyond `sigmas` is remembered as one at `sigmas`, so that a single spike does not
        hide the next one, and a new level becomes the usual one.
        """
        if not math.isfinite(value):
            return 0.0
        if len(self._values) < min(_FEWEST, self._values.maxlen or _FEWEST):
            self._values.append(value)
            return 0.0
        mean = math.fsum(self._values) / len(self._values)
        squares = math.fsum((each - mean) ** 2 for each in self._values)
        deviation = math.sqrt(squares / len(self._values))
        deviation = max(deviation, _LEAST_DEVIATION * abs(mean), torch.finfo(torch.float32).tiny)
        self._values.append(min(value, mean + sigmas * deviation))
        return (value - mean) / deviation


class SpikeWatch:
    """Judges the losses of a run.

    action: log = an event for a spike of the loss, of the gradient norm, or of a task's loss; skip
    = the step of a spike of the loss is left out as well, which costs a look at every loss;
    rollback = as skip here, `rollback.py` does the rest.
    recent: losses as a checkpoint has them, so that a resumed run skips what this one would.
    gather: the value of every rank on every rank.
    """

    def __init__(
        self,
        *,
        action: SpikeAction,
        sigmas: float,
        window: int,
        recent: Sequence[float] = (),
        gather: Callable[[float], list[float]],
        tell: Tell | None = None,
    ) -> None:
        self._action, self._sigmas, self._window = action, sigmas, window
        self._loss = RollingZScore(window=window, values=recent)
        self._series: dict[str, RollingZScore] = {}
        self._gather = gather
        self._tell = tell
        self.latest = Judgement(loss=0.0, sigmas=0.0)

    @property
    def recent(self) -> list[float]:
        """What a checkpoint has to keep."""
        return self._loss.values if self._action in _SKIPPING else []

    def go_back(self, recent: Sequence[float]) -> None:
        """Compare the next loss with what `recent` was in an earlier state of the run."""
        self._loss = RollingZScore(window=self._window, values=recent)

    def must_skip(self, loss: torch.Tensor) -> bool:
        """Whether the step with this loss is to be left out, the same on every rank."""
        if self._action not in _SKIPPING:
            return False
        ranks = self._gather(loss.item())
        mean = math.fsum(ranks) / len(ranks)
        self.latest = Judgement(mean, self._loss.see(mean, sigmas=self._sigmas))
        return self.latest.sigmas > self._sigmas

    def see_row(self, row: Mapping[str, float | int], *, is_skipped: bool) -> None:
        """Tell of the spikes of a step; `is_skipped` where `must_skip` said so."""
        if self._action == "off":
            return
        found: dict[str, Any] = {}
        for name, value in row.items():
            if name not in ("loss", "gradient_norm") and not name.startswith("loss/"):
                continue
            if name == "gradient_norm" and "left_out" in row:
                continue
            series = self._series.setdefault(name, RollingZScore(window=self._window))
            score = series.see(value, sigmas=self._sigmas)
            if score > self._sigmas:
                found[name] = {"value": value, "sigmas": round(score, 1)}
        if self._tell is not None and (found or is_skipped):
            self._tell("spike", {"step": row["step"], "series": found, "is_skipped": is_skipped})
