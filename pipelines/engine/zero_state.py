"""The state of a ZeRO engine as whole tensors per name, in and out, for every stage.

    stage 0     every rank has everything; torch's own AdamW
    stages 1, 2 weights are whole; the moments lie in flat partitions, one per rank and group
    stage 3     of weights and moments each rank keeps the same share: a flat run of values,
                padded so that all shares have one length

Reads and writes the engine's own objects and imports nothing of DeepSpeed.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.engine.backend import copy_to_host
from pipelines.engine.optim import MOMENTS, STEP, read_moments, write_moments

Named = Mapping[str, Tensor]
Parameters = Mapping[str, nn.Parameter]


class ZeroState(Protocol):
    """State of one engine; every method is called by all ranks together."""

    def pieces(self) -> dict[str, Tensor]: ...
    def whole(self, pieces: Named) -> dict[str, Tensor]: ...
    def split(self, whole: Named) -> dict[str, Tensor]: ...
    def model_state(self) -> dict[str, Tensor]: ...
    def moments(self) -> dict[str, Tensor]: ...
    def load(self, model: Named, moments: Named, step: int) -> None: ...
    def after_step(self) -> None: ...


class WholeWeights:
    """Stages 0 to 2: the model's own parameters, and moments as the stage keeps them."""

    def __init__(self, engine: Any, model: nn.Module, trained: Parameters) -> None:
        self._engine, self._model, self._trained = engine, model, trained

    def pieces(self) -> dict[str, Tensor]:
        return dict(self._model.named_parameters())

    def whole(self, pieces: Named) -> dict[str, Tensor]:
        return copy_to_host(pieces) if dist.get_rank() == 0 else {}

    def split(self, whole: Named) -> dict[str, Tensor]:
        return dict(whole)

    def model_state(self) -> dict[str, Tensor]:
        return self.whole(self._model.state_dict(keep_vars=True))

    def moments(self) -> dict[str, Tensor]:
        return self.whole(read_moments(self._engine.optimizer, self._trained))

    def load(self, model: Named, moments: Named, step: int) -> None:
        self._model.load_state_dict(model)
        write_moments(self._engine.optimizer, self._trained, moments, step)

    def after_step(self) -> None:
        """Nothing is left over."""


class ShardedMoments(WholeWeights):
    """Stages 1 and 2."""

    def moments(self) -> dict[str, Tensor]:
        zero = self._engine.optimizer
        if _has_stepped(zero.optimizer.state):
            _link_moments(zero)
        return _read_moments(
            zero.optimizer.state,
            self._trained,
            lambda parameter, moment: parameter.get_full_hp_param(moment),  # type: ignore[attr-defined]
        )

    def load(self, model: Named, moments: Named, step: int) -> None:
        self._model.load_state_dict(model)
        zero = self._engine.optimizer
        zero.refresh_fp32_params()
        zero.optimizer.state.clear()
        if not moments:
            return
        _empty_moments(zero.optimizer, zero.single_partition_of_fp32_groups, moments, step)
        _link_moments(zero)
        for name, parameter in self._trained.items():
            for moment in MOMENTS:
                value = moments[f"{moment}/{name}"].to(parameter.device)
                parameter.set_full_hp_param(value, moment)  # type: ignore[attr-defined]

    def after_step(self) -> None:
        """Forget offloaded gradients: what the next step does not reach would count again."""
        zero = self._engine.optimizer
        if zero.cpu_offload:
            _clear_gradients(zero.single_partition_of_fp32_groups)


class ShardedWeights:
    """Stage 3."""

    def __init__(
        self, engine: Any, model: nn.Module, trained: Parameters, gathered: Callable[..., Any]
    ) -> None:
        self._engine, self._model, self._trained = engine, model, trained
        self._gathered = gathered

    def pieces(self) -> dict[str, Tensor]:
        return {
            name: parameter.ds_tensor.data  # type: ignore[attr-defined]
            for name, parameter in self._model.named_parameters()
        }

    def whole(self, pieces: Named) -> dict[str, Tensor]:
        parameters = dict(self._model.named_parameters())
        tensors: dict[str, Tensor] = {}
        for name, piece in pieces.items():
            tensor = self._join(parameters[name], piece)
            if dist.get_rank() == 0:
                tensors[name] = tensor.cpu()
        return tensors

    def split(self, whole: Named) -> dict[str, Tensor]:
        parameters = dict(self._model.named_parameters())
        return {name: self._share(parameters[name], value) for name, value in whole.items()}

    def model_state(self) -> dict[str, Tensor]:
        pieces = self.pieces()
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        whole = self.whole(pieces)
        if dist.get_rank():
            return {}
        state = self._model.state_dict(keep_vars=True)
        buffers = {name: value for name, value in state.items() if id(value) not in names}
        copies = copy_to_host(buffers)
        return {
            name: whole[names[id(value)]] if id(value) in names else copies[name]
            for name, value in state.items()
        }

    def moments(self) -> dict[str, Tensor]:
        zero = self._engine.optimizer
        return _read_moments(zero.optimizer.state, self._trained, zero.get_full_hp_param)

    @torch.no_grad()
    def load(self, model: Named, moments: Named, step: int) -> None:
        zero = self._engine.optimizer
        parameters = self._model.state_dict(keep_vars=True)
        for name, value in parameters.items():
            if not hasattr(value, "ds_id"):
                value.copy_(model[name])
                continue
            # one at a time, so that the model is never whole on the device
            with self._gathered([value], modifier_rank=0):
                value.data.copy_(model[name])
        zero.refresh_fp32_params()
        zero.optimizer.state.clear()
        if not moments:
            return
        _empty_moments(zero.optimizer, zero.fp32_partitioned_groups_flat, moments, step)
        for name, parameter in self._trained.items():
            for moment in MOMENTS:
                share = self._share(parameter, moments[f"{moment}/{name}"])
                zero.set_local_hp_param(share, parameter, moment)

    def after_step(self) -> None:
        """Forget the gradients of this step.

        DeepSpeed never clears its buffer of partitioned gradients: a parameter that the next
        step does not reach would get this step's gradient again.
        """
        zero = self._engine.optimizer
        zero.grad_partitions_flat_buffer.zero_()
        _clear_gradients(zero.fp32_partitioned_groups_flat)

    @staticmethod
    def _share(parameter: Any, value: Tensor) -> Tensor:
        length = parameter.ds_tensor.numel()
        padding = length * dist.get_world_size() - value.numel()
        padded = F.pad(value.flatten(), (0, padding))
        share = padded.narrow(0, length * dist.get_rank(), length)
        return share.to(parameter.ds_tensor.device)

    @staticmethod
    def _join(parameter: Any, piece: Tensor) -> Tensor:
        # on the device that the group communicates through, which offloaded pieces are not on
        piece = piece.detach().to(parameter.device).contiguous()
        joined = piece.new_empty(piece.numel() * dist.get_world_size())
        dist.all_gather_into_tensor(joined, piece)
        return joined[: parameter.ds_numel].view(parameter.ds_shape)


def _read_moments(
    state: Mapping[Any, Any],
    trained: Parameters,
    read: Callable[[nn.Parameter, str], Tensor],
) -> dict[str, Tensor]:
    """Whole moments and the number of steps; on ranks but 0 they are dropped one by one."""
    if not _has_stepped(state):
        return {}
    num_steps = next(iter(state.values()))["step"]
    tensors = {STEP: torch.as_tensor(num_steps).reshape(1).float().cpu()}
    for name, parameter in trained.items():
        for moment in MOMENTS:
            tensor = read(parameter, moment)
            if dist.get_rank() == 0:
                tensors[f"{moment}/{name}"] = tensor.detach().cpu()
    return tensors if dist.get_rank() == 0 else {}


def _has_stepped(state: Mapping[Any, Any]) -> bool:
    return "step" in next(iter(state.values()), {})


def _empty_moments(optimizer: Any, partitions: list[Tensor], moments: Named, step: int) -> None:
    """Moments of zero in every partition, where `moments` are then written into."""
    num_steps = float(moments[STEP]) if STEP in moments else float(step)
    for partition in partitions:
        optimizer.state[partition] = {
            "step": torch.tensor(num_steps),
            **{moment: torch.zeros_like(partition) for moment in MOMENTS},
        }


def _clear_gradients(partitions: list[Tensor]) -> None:
    for partition in partitions:
        if partition.grad is not None:
            partition.grad.zero_()


def _link_moments(zero: Any) -> None:
    """Tell every parameter where its moments are.

    DeepSpeed does so once, after the step of the first parameter group, when the other groups
    have no moments yet.
    """
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()
