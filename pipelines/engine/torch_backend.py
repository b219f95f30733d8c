"""Plain PyTorch: gradients averaged over ranks in one fixed order, AdamW on every rank."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.config import OptimizerConfig
from pipelines.engine.backend import Seen, TrainedModule, copy_to_host
from pipelines.engine.distributed import ProcessPlace
from pipelines.engine.loss_scale import LossScale
from pipelines.engine.optim import (
    FlatGradients,
    ParameterGroup,
    build_optimizer,
    named_parameters,
    read_moments,
    set_learning_rates,
    write_moments,
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
        place: ProcessPlace,
        accumulation: int,
        loss_scale: LossScale | None = None,
    ) -> None:
        self.loss_scale = loss_scale
        self._module = module
        self._trained = named_parameters(groups)
        if place.world_size > 1:
            _copy_from_main(module)
        self._gradients = FlatGradients(list(self._trained.values()))
        self._optimizer = build_optimizer(groups, config)
        self._clip_norm = config.clip_norm
        self._place = place
        self._accumulation = accumulation

    def forward(
        self,
        batches: Sequence[Batch],
        draws: UniformSource,
        counts: Counts | None,
        seen: Seen | None = None,
    ) -> dict[str, Tensor]:
        return self._module(batches, draws, counts, seen)

    def backward(self, loss: Tensor) -> None:
        scale = 1.0 if self.loss_scale is None else self.loss_scale.value
        (loss * (scale / self._accumulation)).backward()

    @torch.no_grad()
    def step(self, learning_rate_factor: float) -> Tensor:
        if self._place.world_size > 1:
            dist.all_reduce(self._gradients.buffer)
            self._gradients.buffer.div_(self._place.world_size)
        if self.loss_scale is not None:
            self._gradients.buffer.div_(self.loss_scale.value)
        norm = self._gradients.clip(self._clip_norm)
        set_learning_rates(self._optimizer, learning_rate_factor)
        # the fused kernel reads this on the device and leaves everything as it is
        self._optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self._optimizer.step()
        self._gradients.buffer.zero_()
        if self.loss_scale is not None:
            self.loss_scale.update(is_finite=bool(norm.isfinite()))
        return norm

    def pieces(self) -> dict[str, Tensor]:
        return dict(self._module.model.named_parameters())

    def whole(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return copy_to_host(pieces) if self._place.is_main else {}

    def split(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(whole)

    def model_state(self) -> dict[str, Tensor]:
        return self.whole(self._module.model.state_dict(keep_vars=True))

    def optimizer_state(self) -> dict[str, Tensor]:
        return self.whole(read_moments(self._optimizer, self._trained))

    @torch.no_grad()
    def load_state(
        self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], step: int
    ) -> None:
        self._module.model.load_state_dict(model)
        write_moments(self._optimizer, self._trained, optimizer, step)


@torch.no_grad()
def _copy_from_main(module: TrainedModule) -> None:
    """Give every rank the weights of rank 0."""
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, src=0)
