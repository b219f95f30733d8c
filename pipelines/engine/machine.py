"""The device, the threads and the determinism of this process."""

import dataclasses
import logging
import os
import platform
import sys
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor

from pipelines.config import ParallelConfig
from pipelines.engine.distributed import ProcessPlace
from pipelines.errors import ConfigError

_log = logging.getLogger(__name__)
_Value = TypeVar("_Value")
_GIB = 2**30


def choose_device(config: ParallelConfig, place: ProcessPlace) -> torch.device:
    """The device of this process, chosen before anything runs on it.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    num_gpus = torch.cuda.device_count()
    if config.device == "cuda" and not num_gpus:
        raise ConfigError(
            "parallel.device=cuda needs a CUDA device; none is visible. "
            "Set parallel.device=cpu, or ask the cluster for a GPU."
        )
    if config.device == "cpu" or not num_gpus:
        return torch.device("cpu")
    # a cluster shows either all GPUs of the node to every rank, or each rank its own
    device = torch.device("cuda", place.local_rank % num_gpus)
    torch.cuda.set_device(device)
    return device


def prepare_process(config: ParallelConfig, *, deterministic: bool, is_cuda: bool) -> None:
    """Set threads and determinism for the rest of the process."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    if not deterministic:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # on CUDA some gradients have only kernels that add in random order: warn there
    torch.use_deterministic_algorithms(True, warn_only=is_cuda)
    # it would also fill every new tensor with NaN, which costs time and changes no result
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def to_device(value: _Value, device: torch.device) -> _Value:
    """The same batch, tuple or tensor with every tensor in it on the device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(to_device(item, device) for item in value)  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: to_device(getattr(value, field.name), device)
            for field in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **fields)
    return value


def memory_gib(device: torch.device) -> float:
    """The most memory this process has used: of the GPU, or of the machine on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    return psutil.Process().memory_info().rss / _GIB


def describe(device: torch.device, place: ProcessPlace) -> dict[str, Any]:
    """What a number may depend on besides the configuration."""
    is_cuda = device.type == "cuda"
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.processor() or "cpu",
        "num_threads": torch.get_num_threads(),
        "world_size": place.world_size,
        "launcher": place.family,
        "slurm": {key: value for key, value in os.environ.items() if key.startswith("SLURM_JOB")},
    }
