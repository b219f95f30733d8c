"""Plain PyTorch: gradients averaged over ranks in one fixed order, AdamW on every rank."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.config import OptimizerConfig
from pipelines.engine.backend import MOMENTS, TrainedModule
from pipelines.engine.optim import (
    FlatGradients,
    ParameterGroup,
    build_optimizer,
    set_learning_rates,
)
from xdecoder.batch import Batch
from xdecoder.losses.draws import UniformSource
from xdecoder.tasks.base import Counts


class TorchBackend:
    """Data-parallel training without a wrapper around the module.

    DistributedDataParallel would hide communication behind the backward pass, but regroups its
    buckets after the first step, so that a resumed run adds in another order. Here the order is
    that of the parameter groups, always: a resumed run equals an uninterrupted one bit for bit.
    """

    def __init__(
        self,
        module: TrainedModule,
        groups: Sequence[ParameterGroup],
        config: OptimizerConfig,
        *,
        world_size: int,
        accumulation: int,
    ) -> None:
        self._module = module
        self._names = [name for group in groups for name in group.names]
        self._parameters = [parameter for group in groups for parameter in group.parameters]
        if world_size > 1:
            _copy_from_main(module)
        self._gradients = FlatGradients(self._parameters)
        self._optimizer = build_optimizer(groups, config)
        self._clip_norm = config.clip_norm
        self._world_size = world_size
        self._accumulation = accumulation

    def forward(
        self, batches: Sequence[Batch], draws: UniformSource, counts: Counts | None
    ) -> dict[str, Tensor]:
        return self._module(batches, draws, counts)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        (loss / self._accumulation).backward()

    @torch.no_grad()
    def step(self, learning_rate_factor: float) -> Tensor:
        if self._world_size > 1:
            dist.all_reduce(self._gradients.buffer)
            self._gradients.buffer.div_(self._world_size)
        norm = self._gradients.clip(self._clip_norm)
        set_learning_rates(self._optimizer, learning_rate_factor)
        self._optimizer.step()
        self._gradients.buffer.zero_()
        return norm

    def optimizer_state(self) -> dict[str, Tensor]:
        state = self._optimizer.state
        return {
            f"{moment}/{name}": state[parameter][moment].detach().cpu()
            for name, parameter in zip(self._names, self._parameters, strict=True)
            for moment in MOMENTS
            if parameter in state
        }

    @torch.no_grad()
    def load_state(
        self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], step: int
    ) -> None:
        self._module.model.load_state_dict(model)
        for name, parameter in zip(self._names, self._parameters, strict=True):
            if f"{MOMENTS[0]}/{name}" not in optimizer:
                continue
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                **{
                    moment: optimizer[f"{moment}/{name}"].to(parameter.device, copy=True)
                    for moment in MOMENTS
                },
            }


@torch.no_grad()
def _copy_from_main(module: TrainedModule) -> None:
    """Give every rank the weights of rank 0."""
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, src=0)
