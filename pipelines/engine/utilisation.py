"""MFU: the share of the operations that a GPU could do which the model's own passes are.

A backward pass counts as twice the forward pass. What is computed again because of activation
checkpointing does not count: it is not progress.
"""

from collections.abc import Sequence

import torch

from pipelines.config import ParallelConfig
from pipelines.engine.workload import forward_flops
from xdecoder.batch import Batch
from xdecoder.tasks import MultiTask

_PASSES = 3
# dense operations per second in 16 bits and in float32 without tensor cores, by a part of the
# device's name; of two that fit the first counts. Source: the vendor's data sheets
_PEAKS = {
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "GH200": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "V100": (125e12, 15.7e12),
}


def peak_flops(device: torch.device, config: ParallelConfig) -> float | None:
    """Operations per second that a device can do in the precision of a run, if that is known."""
    if device.type != "cuda":
        return None
    return peak_of_name(torch.cuda.get_device_name(device), config)


def peak_of_name(name: str, config: ParallelConfig) -> float | None:
    """The same by the name of the device."""
    found = next((peaks for part, peaks in _PEAKS.items() if part in name), None)
    if found is None:
        return None
    return found[1] if config.precision == "fp32" else found[0]


class Utilisation:
    """Knows the operations of a step after it was shown one; says nothing without a peak.

    peak: operations per second of the device. num_micro: forward passes in a step.
    """

    def __init__(self, peak: float | None, *, num_micro: int) -> None:
        self._peak, self._num_micro = peak, num_micro
        self._flops: int | None = None

    def count_once(self, losses: MultiTask, batches: Sequence[Batch], seed: int) -> None:
        """Count a forward pass on these batches, all ranks together, the first time only."""
        if self._peak is None or self._flops is not None:
            return
        # dropout must not draw from the numbers of the run
        with torch.random.fork_rng():
            self._flops = _PASSES * self._num_micro * forward_flops(losses, batches, seed)

    def columns(self, seconds_per_step: float) -> dict[str, float]:
        """The MFU in [0, 1] of steps that took so long, by its name, where it is known."""
        if self._peak is None or self._flops is None:
            return {}
        return {"mfu": self._flops / seconds_per_step / self._peak}


def build_utilisation(device: torch.device, config: ParallelConfig) -> Utilisation:
    """What measures a run; under ZeRO-3 no pass can be made beside the engine, so nothing."""
    is_sharded = config.backend == "deepspeed" and config.zero_stage == 3
    peak = None if is_sharded else peak_flops(device, config)
    return Utilisation(peak, num_micro=config.accumulation)
