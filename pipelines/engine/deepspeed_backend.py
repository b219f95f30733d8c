"""DeepSpeed's ZeRO behind the same protocol; the only place that imports it.

What DeepSpeed 0.19 needs to be told, each found by comparing with plain PyTorch, each with a test
in tests/pipelines/engine, test_zero.py or test_self_check.py:

- A  ZeRO-3 never clears its gradients, nor does an offloaded optimizer: `ZeroState.after_step`;
- B  an offloaded optimizer loses gradients of all micro-batches but the last, unless the
     accumulation is ours to end (`managed_gradient_accumulation: false`);
- C  ranks whose losses differ mix up each other's gradients: they are compared before the backward;
- D  parameters without dimensions, or in another memory format, end the start with a riddle;
- E  a parameter that no loss reached gets a zero gradient, as `FlatGradients` gives it;
- F  `gradient_clipping` has a default of 1.0, so it is always set;
- G  ZeRO-3 replaces the linear layer of the whole process by one that adds the bias after rounding,
     for good: here it lasts as long as a forward and a backward that need it;
- H  ZeRO-3 finds tensors in tuples, lists and dictionaries only, so a module that answers with a
     dataclass has no weights of its own in the backward: `_see_dataclasses`;
- its own Adam is compiled at first use, minutes on a CPU: torch's AdamW is passed in instead.
"""

import dataclasses
import logging
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.config import OptimizerConfig, ParallelConfig
from pipelines.engine.backend import Seen, TrainedModule
from pipelines.engine.loss_scale import LossScale
from pipelines.engine.optim import (
    BUCKET_VALUES,
    ParameterGroup,
    build_optimizer,
    clip_gradients,
    named_parameters,
    set_learning_rates,
)
from pipelines.engine.zero_state import ShardedMoments, ShardedWeights, WholeWeights, ZeroState
from pipelines.errors import BackendUnavailable, ConfigError
from xdecoder.batch import Batch
from xdecoder.losses.draws import UniformSource
from xdecoder.tasks.base import Counts

# DeepSpeed wants buckets of a multiple of twice the number of ranks or less
_BUCKET_STEP = 2**10


class DeepSpeedBackend:
    """ZeRO of any stage, with the optimizer or all parameters in the host's memory if asked.

    State goes in and out as whole tensors per parameter name, so a checkpoint fits any number
    of ranks, every stage, and the plain backend.
    """

    def __init__(
        self,
        module: TrainedModule,
        groups: Sequence[ParameterGroup],
        config: OptimizerConfig,
        *,
        parallel: ParallelConfig,
        is_cuda: bool,
        loss_scale: LossScale | None = None,
    ) -> None:
        self.loss_scale = loss_scale
        self._stage = parallel.zero_stage
        self._clip_norm = config.clip_norm
        self._accumulation = parallel.accumulation
        self._trained = named_parameters(groups)
        _prepare_parameters(module.model)
        self._deepspeed = _import_deepspeed(is_cuda=is_cuda)
        if not dist.is_initialized():
            _be_alone()
        self._deepspeed.init_distributed("nccl" if is_cuda else "gloo")
        # a fused step is one kernel per group on flat partitions either way
        optimizer = build_optimizer(groups, config, is_fused=False)
        num_values = sum(group.num_values for group in groups)
        _see_dataclasses()
        with _linear_layer(nn.functional.linear):
            self._engine, *_ = self._deepspeed.initialize(
                model=module,
                optimizer=optimizer,
                config=_settings(config, parallel, num_values=num_values),
            )
            self._linear = nn.functional.linear
        self._state = self._build_state(module.model)
        self._set_scale()

    def forward(
        self,
        batches: Sequence[Batch],
        draws: UniformSource,
        counts: Counts | None,
        seen: Seen | None = None,
    ) -> dict[str, Tensor]:
        # before: ZeRO-3 would gather the weights of other modules on other ranks
        _require_same([batch.task for batch in batches], "tasks", batches[0].images.device)
        # `seen` goes in, because what comes out has hooks that take any gradient for a backward
        with _linear_layer(self._linear):
            terms = self._engine(batches, draws, counts, seen)
        _require_same(list(terms), "loss terms", batches[0].images.device)
        return terms

    def backward(self, loss: Tensor) -> None:
        if self._stage == 0:
            # reduced once, in `step`
            self._engine.set_gradient_accumulation_boundary(False)
            loss = loss if self.loss_scale is None else loss * self.loss_scale.value
        # checkpointed blocks run their forward again
        with _linear_layer(self._linear):
            self._engine.backward(loss / self._accumulation, scale_wrt_gas=False)

    def step(self, learning_rate_factor: float) -> Tensor:
        set_learning_rates(self._engine.optimizer, learning_rate_factor)
        norm = self._step_replicated() if self._stage == 0 else self._step_sharded()
        if self.loss_scale is not None:
            self.loss_scale.update(is_finite=bool(norm.isfinite()))
            self._set_scale()
        return norm

    def pieces(self) -> dict[str, Tensor]:
        return self._state.pieces()

    def whole(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._state.whole(pieces)

    def split(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._state.split(whole)

    def model_state(self) -> dict[str, Tensor]:
        return self._state.model_state()

    def optimizer_state(self) -> dict[str, Tensor]:
        return self._state.moments()

    @torch.no_grad()
    def load_state(
        self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], step: int
    ) -> None:
        self._state.load(model, optimizer, step)
        # the scale was loaded before this, if there is one
        self._set_scale()

    def _build_state(self, model: nn.Module) -> ZeroState:
        if self._stage == 3:
            gathered = self._deepspeed.zero.GatheredParameters
            return ShardedWeights(self._engine, model, self._trained, gathered)
        kind = WholeWeights if self._stage == 0 else ShardedMoments
        return kind(self._engine, model, self._trained)

    def _set_scale(self) -> None:
        if self._stage and self.loss_scale is not None:
            self._engine.optimizer.loss_scale = self.loss_scale.value

    def _step_sharded(self) -> Tensor:
        self._engine.step()
        self._state.after_step()
        # infinite where DeepSpeed found gradients that are not finite and left the step out
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32)

    @torch.no_grad()
    def _step_replicated(self) -> Tensor:
        """Stage 0 has neither a norm to tell nor a check of it: both are done here."""
        for parameter in self._trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.allreduce_gradients()
        gradients = [value.grad for value in self._trained.values() if value.grad is not None]
        if self.loss_scale is not None:
            torch._foreach_div_(gradients, self.loss_scale.value)
        norm = clip_gradients(gradients, self._clip_norm)
        if norm.isfinite():
            self._engine.optimizer.step()
        self._engine.zero_grad()
        return norm


def _prepare_parameters(model: nn.Module) -> None:
    """Lay out parameters as DeepSpeed reads them.

    Raises:
        ConfigError: a parameter has no dimensions, which DeepSpeed cannot flatten.
    """
    scalars = [name for name, value in model.named_parameters() if value.ndim == 0]
    if scalars:
        raise ConfigError(
            "parallel.backend=deepspeed needs parameters of at least one dimension; "
            f"{', '.join(scalars)} has none. Give it the shape [1], or set parallel.backend=torch."
        )
    for parameter in model.parameters():
        # DeepSpeed refuses channels_last; the values stay the same
        parameter.data = parameter.data.contiguous()


def _require_same(names: Sequence[str], what: str, device: torch.device) -> None:
    """Return if every rank has the same names in the same order.

    Ranks that use other parameters send their gradients in another order, and ZeRO adds what
    does not belong together without noticing.

    Raises:
        ConfigError: saying what each rank has; on every rank.
    """
    if dist.get_world_size() == 1:
        return
    own = zlib.crc32("|".join(names).encode())
    extremes = torch.tensor([own, -own], device=device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    if extremes[0] == -extremes[1]:
        return
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, tuple(names))
    first = next(rank for rank, its in enumerate(ranks) if its != ranks[0])
    raise ConfigError(
        f"parallel.backend=deepspeed needs the same {what} on every rank in every step; rank 0 "
        f"has {', '.join(ranks[0])}, rank {first} has {', '.join(ranks[first])}. Give every rank "
        "the same tasks, or set parallel.backend=torch."
    )


def _import_deepspeed(*, is_cuda: bool) -> Any:
    if not is_cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ImportError as error:
        raise BackendUnavailable(
            f"parallel.backend=deepspeed needs the package deepspeed; got {error}. "
            "Install the extra `train`, or set parallel.backend=torch."
        ) from error
    deepspeed.utils.logger.setLevel(logging.ERROR)
    if not is_cuda:
        # a communication kernel that it would compile at start; gloo does the same work
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _see_dataclasses() -> None:
    """Have ZeRO-3 look for tensors in dataclasses too, once for the process.

    It gathers a module's weights again when a gradient reaches a tensor that the module returned,
    and lets go of them when one reaches a tensor that it was given.
    """
    from deepspeed.runtime.zero import parameter_offload

    known = parameter_offload.apply_to_tensors_only
    if known.__module__ == __name__:
        return

    def applied(function: Callable[..., Any], value: Any, warning_msg_fn: Any = None) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [each.name for each in dataclasses.fields(value) if each.init]
            parts = {name: applied(function, getattr(value, name)) for name in names}
            # what holds no tensors stays itself: others may write to it
            is_same = all(part is getattr(value, name) for name, part in parts.items())
            return value if is_same else dataclasses.replace(value, **parts)
        if isinstance(value, tuple | list):
            inner = [applied(function, each) for each in value]
            return type(value)(*inner) if hasattr(value, "_fields") else type(value)(inner)
        return known(function, value, warning_msg_fn)

    parameter_offload.apply_to_tensors_only = applied


@contextmanager
def _linear_layer(function: Callable[..., Tensor]) -> Iterator[None]:
    """Have `nn.functional.linear` be this function within, and what it was before afterwards."""
    before = nn.functional.linear
    nn.functional.linear = function
    try:
        yield
    finally:
        nn.functional.linear = before


def _be_alone() -> None:
    """Describe a world of one process, which DeepSpeed wants to be told about."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone)
    # port 0: the system picks a free one, nobody else has to know it
    os.environ["MASTER_PORT"] = "0"


def _settings(
    config: OptimizerConfig, parallel: ParallelConfig, *, num_values: int
) -> dict[str, object]:
    # a size that DeepSpeed can align, and no larger than the model needs
    bucket = min(math.ceil(num_values / _BUCKET_STEP) * _BUCKET_STEP, BUCKET_VALUES)
    zero: dict[str, object] = {
        "stage": parallel.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_param_persistence_threshold": parallel.keep_whole_below,
    }
    if parallel.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if parallel.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    return {
        # the size of a batch is ours to know; DeepSpeed only multiplies it for its own log
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": parallel.accumulation,
        "managed_gradient_accumulation": parallel.zero_stage == 0,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
