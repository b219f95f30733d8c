"""All tasks of a step in one module, so that a wrapper for parallel training sees one forward."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from xdecoder.batch import Batch
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.matching import NonFiniteCostError, usable
from xdecoder.tasks.base import Counts, Task


class MultiTask(nn.Module):
    """A model and the tasks that train it.

    Raises: ValueError for a batch whose task is not among `tasks`.
    """

    def __init__(self, model: nn.Module, tasks: Sequence[Task[Any, Any]]) -> None:
        super().__init__()
        self.model = model
        self.tasks = {task.name: task for task in tasks}

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """The counts of all batches; average them over micro-batches and pass them to forward."""
        counts: dict[str, float] = {}
        for batch in batches:
            counts |= self._task(batch).counts(self.model, batch)
        return counts

    def forward(
        self, batches: Sequence[Batch], draws: UniformSource, counts: Counts | None = None
    ) -> dict[str, Tensor]:
        """Weighted loss terms of all batches; their sum is what to minimise.

        Raises: NonFiniteCostError with the terms of all batches, after the last of them: other
            processes, which found nothing wrong, wait for the collectives of every batch.
        """
        terms: dict[str, Tensor] = {}
        complaints = []
        for batch in batches:
            try:
                terms |= self._task(batch).losses(self.model, batch, draws, counts)
            except NonFiniteCostError as error:
                terms |= error.terms
                complaints.append(str(error))
        return usable(terms, complaints)

    def _task(self, batch: Batch) -> Task[Any, Any]:
        if batch.task not in self.tasks:
            raise ValueError(
                f"MultiTask: a batch must be of one of the tasks {sorted(self.tasks)}; got "
                f"{batch.task!r}. Build that task too, or leave its source out of the mixture."
            )
        return self.tasks[batch.task]
