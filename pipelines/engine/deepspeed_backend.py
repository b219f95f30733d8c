"""DeepSpeed's ZeRO behind the same protocol; the only place that imports it.

What DeepSpeed 0.19 needs to be told, each found by comparing with plain PyTorch:

- `gradient_clipping` has a default of 1.0, so it is always set;
- its own Adam is compiled at first use, minutes on a CPU: torch's AdamW is passed in instead;
- every rank runs the same tasks in a step, and all of them share one backward;
- a parameter that no loss reached gets a zero gradient, as `FlatGradients` gives it.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.config import OptimizerConfig
from pipelines.engine.backend import MOMENTS, TrainedModule
from pipelines.engine.optim import ParameterGroup, build_optimizer, set_learning_rates
from pipelines.errors import BackendUnavailable
from xdecoder.batch import Batch
from xdecoder.losses.draws import UniformSource
from xdecoder.tasks.base import Counts


class DeepSpeedBackend:
    """ZeRO stage 1 or 2: the moments (and gradients) of each parameter live on one rank.

    State goes in and out as whole tensors per parameter name, so a checkpoint fits any number
    of ranks, either stage, and the plain backend.
    """

    def __init__(
        self,
        module: TrainedModule,
        groups: Sequence[ParameterGroup],
        config: OptimizerConfig,
        *,
        zero_stage: int,
        accumulation: int,
        is_cuda: bool,
    ) -> None:
        self._module = module
        self._parameters = {
            name: parameter
            for group in groups
            for name, parameter in zip(group.names, group.parameters, strict=True)
        }
        self._deepspeed = _import_deepspeed(is_cuda=is_cuda)
        if not torch.distributed.is_initialized():
            _be_alone()
        self._deepspeed.init_distributed("nccl" if is_cuda else "gloo")
        # a fused step is one kernel per group on flat partitions either way
        optimizer = build_optimizer(groups, config, is_fused=False)
        self._engine, *_ = self._deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=_settings(config, zero_stage=zero_stage, accumulation=accumulation),
        )

    def forward(
        self, batches: Sequence[Batch], draws: UniformSource, counts: Counts | None
    ) -> dict[str, Tensor]:
        return self._engine(batches, draws, counts)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss)
        if not is_last:
            self._engine.step()

    def step(self, learning_rate_factor: float) -> Tensor:
        set_learning_rates(self._engine.optimizer, learning_rate_factor)
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32)

    def optimizer_state(self) -> dict[str, Tensor]:
        _link_moments(self._engine.optimizer)
        read = self._deepspeed.utils.safe_get_full_optimizer_state
        return {
            f"{moment}/{name}": read(parameter, moment).detach().cpu()
            for name, parameter in self._parameters.items()
            for moment in MOMENTS
        }

    @torch.no_grad()
    def load_state(
        self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], step: int
    ) -> None:
        self._module.model.load_state_dict(model)
        zero = self._engine.optimizer
        zero.refresh_fp32_params()
        if not optimizer:
            return
        for partition in zero.single_partition_of_fp32_groups:
            zero.optimizer.state[partition] = {
                "step": torch.tensor(float(step)),
                **{moment: torch.zeros_like(partition) for moment in MOMENTS},
            }
        _link_moments(zero)
        write = self._deepspeed.utils.safe_set_full_optimizer_state
        for name, parameter in self._parameters.items():
            for moment in MOMENTS:
                write(parameter, optimizer[f"{moment}/{name}"].to(parameter.device), moment)


def _link_moments(zero: Any) -> None:
    """Tell every parameter where its moments are.

    DeepSpeed does so once, after the step of the first parameter group, when the other groups
    have no moments yet.
    """
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()


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


def _be_alone() -> None:
    """Describe a world of one process, which DeepSpeed wants to be told about."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone)
    # port 0: the system picks a free one, nobody else has to know it
    os.environ["MASTER_PORT"] = "0"


def _settings(config: OptimizerConfig, *, zero_stage: int, accumulation: int) -> dict[str, object]:
    return {
        # the size of a batch is ours to know; DeepSpeed only multiplies it for its own log
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
