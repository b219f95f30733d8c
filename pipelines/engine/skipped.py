"""Steps that every rank leaves out: how a loss that is not finite stops an optimizer step.

A rank whose loss is not finite multiplies it by NaN before the backward pass. Its gradients are
then NaN, so is the norm of the gradients averaged over ranks, and a step without a finite norm is
left out by every backend on every rank: the all-reduce of the gradients is the agreement.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import NonFiniteLossError

Tell = Callable[[str, Mapping[str, Any]], None]


def poisoned_unless_finite(loss: Tensor) -> Tensor:
    """The same loss to the last bit; if it is not finite, one whose gradients are all NaN."""
    return loss * (1 + 0 * loss.detach())


def poisoned(loss: Tensor) -> Tensor:
    """A loss whose gradients are all NaN."""
    return loss * torch.nan


class SkippedSteps:
    """Counts the steps that were left out because something was not finite, over all restarts.

    max_total, max_in_a_row: one more ends the run. total: as the checkpoint has it.
    tell: writes an event, on the main rank.
    """

    def __init__(
        self,
        *,
        max_total: int = 0,
        max_in_a_row: int = 0,
        total: int = 0,
        tell: Tell | None = None,
    ) -> None:
        self.total = total
        self._max_total, self._max_in_a_row = max_total, max_in_a_row
        self._in_a_row = 0
        self._tell = tell

    def saw_good_step(self) -> None:
        """End the row of steps that were left out."""
        self._in_a_row = 0

    def saw_bad_step(
        self,
        step: int,
        keys: Sequence[Sequence[str]],
        terms: Mapping[str, Sequence[float | None]],
        *,
        complaint: str = "",
    ) -> None:
        """Write down a step that was left out.

        keys: of the samples, by rank. terms: what was not finite, with its value on every rank.
        complaint: why a loss could not be computed at all.

        Raises:
            NonFiniteLossError: naming the step, tasks, keys and terms, when it is one too many.
        """
        self.total += 1
        self._in_a_row += 1
        tasks = sorted({name.split("/")[0] for name in terms if "/" in name}) or ["all"]
        if self._tell is not None:
            # JSON has no NaN
            values = {name: [str(value) for value in ranks] for name, ranks in terms.items()}
            facts: dict[str, Any] = {
                "tasks": tasks,
                "terms": values,
                "keys": [list(rank) for rank in keys],
            }
            facts |= {"complaint": complaint, "num_skipped": self.total}
            self._tell("skipped_step", {"step": step, **facts})
        if self.total <= self._max_total and self._in_a_row <= self._max_in_a_row:
            return
        raise NonFiniteLossError(
            f"step {step}: {complaint or 'every loss must be finite;'} task {', '.join(tasks)} "
            f"has {dict(terms)} (one value per rank). Keys of the batches: "
            f"{', '.join(key for rank in keys for key in rank)}. Left out so far: {self.total} "
            f"steps, {self._in_a_row} of them in a row; watch.max_skipped={self._max_total}, "
            f"watch.max_skipped_in_a_row={self._max_in_a_row}. Look at these samples, or lower "
            "optimizer.learning_rate; the newest checkpoint is from before this step."
        )
