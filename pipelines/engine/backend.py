"""What the loop asks of whatever runs forward, backward and the optimizer step.

Two implementations: `torch_backend` (plain PyTorch) and `deepspeed_backend` (ZeRO). Their states
are the same plain tensors, one set per parameter name, so a checkpoint of one loads in the other.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from xdecoder.batch import Batch
from xdecoder.losses.draws import UniformSource
from xdecoder.tasks import MultiTask
from xdecoder.tasks.base import Counts

# what AdamW keeps for every parameter, besides the number of steps
MOMENTS = ("exp_avg", "exp_avg_sq")


class Backend(Protocol):
    """Owns the optimizer of one module; every method is called by all ranks together."""

    def forward(
        self, batches: Sequence[Batch], draws: UniformSource, counts: Counts | None
    ) -> dict[str, Tensor]:
        """Weighted loss terms of one micro-batch; `counts` as in `xdecoder.tasks.Task`."""

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add gradients; `is_last` marks the last micro-batch before `step`."""

    def step(self, learning_rate_factor: float) -> Tensor:
        """The gradient norm before clipping, after gradients were averaged and applied."""

    def optimizer_state(self) -> dict[str, Tensor]:
        """Whole moments on the CPU, keyed `moment/parameter name`."""

    def load_state(
        self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], step: int
    ) -> None:
        """Take over weights, moments and the number of steps that were taken."""


class TrainedModule(nn.Module):
    """The losses of a model as one module, computed in the chosen precision.

    One forward holds all tasks of a step, which is what DDP and ZeRO need to reduce each
    gradient once. Parameters stay float32; autocast picks bfloat16 operation by operation.
    """

    def __init__(self, losses: MultiTask, *, is_bfloat16: bool) -> None:
        super().__init__()
        self.losses = losses
        self.is_bfloat16 = is_bfloat16

    @property
    def model(self) -> nn.Module:
        """The model alone; it holds every parameter."""
        return self.losses.model

    def forward(
        self, batches: Sequence[Batch], draws: UniformSource, counts: Counts | None
    ) -> dict[str, Tensor]:
        device_type = batches[0].images.device.type
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.is_bfloat16):
            return self.losses(batches, draws, counts)
