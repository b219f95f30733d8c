"""What a task is, and how its loss terms are named and normalised."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from xdecoder.losses.draws import UniformSource
from xdecoder.losses.world import World
from xdecoder.outputs import DecoderOutput

Counts = Mapping[str, float]
ModelT = TypeVar("ModelT", contravariant=True)
BatchT = TypeVar("BatchT", contravariant=True)


class Task(Protocol[ModelT, BatchT]):
    """Turns a batch into queries and targets, and the decoder's output into loss terms."""

    @property
    def name(self) -> str:
        """The `task` of the batches that it takes."""

    def counts(self, model: ModelT, batch: BatchT) -> dict[str, float]:
        """How many things each sum of the losses runs over, known without a forward pass."""

    def losses(
        self,
        model: ModelT,
        batch: BatchT,
        draws: UniformSource,
        counts: Counts | None = None,
    ) -> dict[str, Tensor]:
        """Weighted terms under `loss_key`; the total is their sum.

        counts: what to divide by, where it is not this batch's own `counts`: when gradients are
        accumulated, the mean of `counts` over the micro-batches, so that the split leaves the
        gradient of every term unchanged but those that contrast examples with each other.
        """


def loss_key(task: str, term: str, layer: int) -> str:
    """The name of a loss term; layer 0 is the prediction of the learned queries."""
    return f"{task}/{term}/{layer}"


def keyed(
    task: str, term: str, values: Float[Tensor, " l"], weight: float, num_predictions: int
) -> dict[str, Tensor]:
    """Weighted terms of the last `len(values)` predictions under their names."""
    first = num_predictions - len(values)
    return {
        loss_key(task, term, first + index): weight * value
        for index, value in enumerate(values.unbind())
    }


def divisors(counts: Counts, world: World, device: torch.device) -> dict[str, Tensor]:
    """What to divide local sums by, so that their mean over processes is the global mean.

    That is each count summed over processes, divided by the number of processes; 1 where nothing
    is counted anywhere, because the sum is 0 there.
    """
    local = torch.tensor(list(counts.values()), dtype=torch.float32, device=device)
    shared = world.mean(local)
    shared = torch.where(shared > 0, shared, 1.0)
    return dict(zip(counts, shared.unbind(), strict=True))


def stacked(output: DecoderOutput, part: str, rows: slice, num_layers: int) -> Tensor:
    """One part of the last `num_layers` predictions, [L, B, rows, C], in full precision."""
    return stacked_at(output, part, rows, last_predictions(len(output.layers), num_layers))


def stacked_at(output: DecoderOutput, part: str, rows: slice, predictions: range) -> Tensor:
    """One part of some predictions, [L, B, rows, C], in full precision."""
    layers = [output.layers[index] for index in predictions]
    return full_precision(torch.stack([getattr(layer, part)[:, rows] for layer in layers]))


def last_predictions(num_predictions: int, num_layers: int) -> range:
    """The indices of the last `num_layers` predictions, or of all where there are fewer."""
    return range(max(num_predictions - num_layers, 0), num_predictions)


def full_precision(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """At least float32: losses and matching costs are not computed in half precision."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def without_autocast(device: torch.device) -> torch.autocast:
    """A context in which products keep the precision of their inputs."""
    return torch.autocast(device_type=device.type, enabled=False)
