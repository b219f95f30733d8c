"""What the loop asks of whatever runs forward, backward and the optimizer step.

Two implementations: `torch_backend` (plain PyTorch) and `deepspeed_backend` (ZeRO). Their states
are the same plain tensors, one set per parameter name, so a checkpoint of one loads in the other,
at any stage and with any number of ranks.

    pieces   what one rank keeps: the parameters themselves, or under ZeRO-3 a share of each
    whole    the tensors that the pieces of all ranks make up; on the CPU of rank 0 alone
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pipelines.engine.loss_scale import LossScale
from pipelines.engine.skipped import poisoned
from xdecoder.batch import Batch
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.matching import NonFiniteCostError
from xdecoder.tasks import MultiTask
from xdecoder.tasks.base import Counts

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class Seen:
    """What the forward passes of one step leave besides loss terms.

    measure: is shown the terms while nothing but the model hangs on their graph. complaint: why
    terms must not be trained on, else empty; one of them is not finite then.
    """

    measure: Callable[[Mapping[str, Tensor]], None] | None = None
    complaint: str = ""


class Backend(Protocol):
    """Owns the optimizer of one module; every method is called by all ranks together."""

    loss_scale: LossScale | None

    def forward(
        self,
        batches: Sequence[Batch],
        draws: UniformSource,
        counts: Counts | None,
        seen: Seen | None = None,
    ) -> dict[str, Tensor]:
        """Weighted loss terms of one micro-batch; `counts` as in `xdecoder.tasks.Task`.

        Costs that cannot be matched raise nothing: a term is not finite, and `seen` has the reason.
        """

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch."""

    def step(self, learning_rate_factor: float) -> Tensor:
        """The gradient norm before clipping, after gradients were averaged and applied.

        A norm that is not finite means that the step was left out on every rank: weights,
        moments and the optimizer's own count of steps are what they were.
        """

    def pieces(self) -> dict[str, Tensor]:
        """What this rank keeps of every parameter, by name; shared with the model."""

    def whole(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors from pieces of the shapes of `pieces()`; on ranks but 0 nothing."""

    def split(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's pieces of whole tensors."""

    def model_state(self) -> dict[str, Tensor]:
        """The whole state dictionary of the model, copied; on ranks but 0 nothing."""

    def optimizer_state(self) -> dict[str, Tensor]:
        """Whole moments keyed `moment/parameter name`, and `step`; on ranks but 0 nothing."""

    def load_state(
        self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], step: int
    ) -> None:
        """Take over whole weights and moments; `step` counts where `optimizer` does not."""


class TrainedModule(nn.Module):
    """The losses of a model as one module, computed in the chosen precision.

    One forward holds all tasks of a step, which is what DDP and ZeRO need to reduce each
    gradient once. Parameters stay float32; autocast picks 16 bits operation by operation.
    """

    def __init__(
        self, losses: MultiTask, *, precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ) -> None:
        super().__init__()
        self.losses = losses
        self.autocast_dtype = _DTYPES.get(precision)

    @property
    def model(self) -> nn.Module:
        """The model alone; it holds every parameter."""
        return self.losses.model

    def forward(
        self,
        batches: Sequence[Batch],
        draws: UniformSource,
        counts: Counts | None,
        seen: Seen | None = None,
    ) -> dict[str, Tensor]:
        device_type = batches[0].images.device.type
        is_enabled = self.autocast_dtype is not None
        with torch.autocast(device_type, dtype=self.autocast_dtype, enabled=is_enabled):
            terms, complaint = self._terms(batches, draws, counts)
        if seen is not None:
            seen.complaint = seen.complaint or complaint
            if seen.measure is not None:
                seen.measure(terms)
        return terms

    def _terms(
        self, batches: Sequence[Batch], draws: UniformSource, counts: Counts | None
    ) -> tuple[dict[str, Tensor], str]:
        """Terms, and why they must not be trained on; their sum is not finite then.

        That rank's backward pass still reaches what it reaches on the others, as ZeRO needs.
        """
        try:
            return self.losses(batches, draws, counts), ""
        except NonFiniteCostError as error:
            first = next(iter(error.terms))
            return error.terms | {first: poisoned(error.terms[first])}, str(error)


def copy_to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that nothing else writes to; names that share a tensor still do."""
    copies: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in copies:
            copies[id(tensor)] = torch.empty_like(tensor, device="cpu").copy_(tensor.detach())
    return {name: copies[id(tensor)] for name, tensor in tensors.items()}
