"""The gradient norm of each task alone, beside the norm of their sum that is clipped.

The gradient of a task is asked of autograd on the graph that the step's own backward pass uses
afterwards, so it changes no bit of the training: nothing is accumulated, no hook of an optimizer
runs, no random number is drawn. Sharded gradients (ZeRO 1 and 2) are whole here; sharded weights
(ZeRO 3) are not, so the configuration refuses them.

Cost of a step that is measured: a backward pass and a buffer of the size of all gradients for each
task, and one all-reduce of each buffer. The two tasks of the recipe `scenes` took a step from 0.82
to 1.18 seconds of one CPU core.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.engine.distributed import Group
from pipelines.engine.optim import norm_of


class TaskNorms:
    """Measures every `every`-th step, the same ones on all ranks.

    parameters: whole on every rank. accumulation: micro-batches of a step.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, every: int, accumulation: int, group: Group
    ) -> None:
        self._trained = [value for value in parameters if value.requires_grad]
        self._every, self._accumulation, self._group = every, accumulation, group

    def begin(self, step: int, *, loss_scale: float) -> "Measurement | None":
        """What to show the terms of step number `step`; None where it is not measured."""
        if step % self._every:
            return None
        return Measurement(
            self._trained,
            loss_scale=loss_scale,
            accumulation=self._accumulation,
            group=self._group,
        )


class Measurement:
    """The gradients of one step by task, added up over its micro-batches."""

    def __init__(
        self,
        trained: list[nn.Parameter],
        *,
        loss_scale: float,
        accumulation: int,
        group: Group,
    ) -> None:
        self._trained, self._group = trained, group
        # small gradients are zero in float16 unless the loss is scaled as it is for training
        self._loss_scale, self._accumulation = loss_scale, accumulation
        self._sums: dict[str, Tensor] = {}

    def __call__(self, terms: Mapping[str, Tensor]) -> None:
        """Add the gradients of a micro-batch, named `task/term/layer`, before it is given up."""
        for task in sorted({name.split("/")[0] for name in terms}):
            own = [term.float() for name, term in terms.items() if name.split("/")[0] == task]
            loss = torch.stack(own).sum() * (self._loss_scale / self._accumulation)
            if not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(
                loss, self._trained, retain_graph=True, allow_unused=True
            )
            total = self._sums.setdefault(task, self._zeros())
            places = total.split([value.numel() for value in self._trained])
            for place, gradient in zip(places, gradients, strict=True):
                if gradient is not None:
                    place.add_(gradient.flatten())

    def norms(self) -> dict[str, Tensor]:
        """By task, the norm of its gradient averaged over ranks, as the optimizer gets the sum.

        Every rank calls it and has the same norms, of tasks that any rank has; not finite where
        the gradient is not.
        """
        tasks = sorted({task for rank in self._group.gather(sorted(self._sums)) for task in rank})
        world_size = self._group.place.world_size
        norms = {}
        for task in tasks:
            total = self._sums.pop(task, None)
            total = self._zeros() if total is None else total
            if world_size > 1:
                dist.all_reduce(total)
            norms[task] = norm_of(total) / (world_size * self._loss_scale)
        return norms

    def _zeros(self) -> Tensor:
        num_values = sum(value.numel() for value in self._trained)
        return torch.zeros(num_values, device=self._trained[0].device)
