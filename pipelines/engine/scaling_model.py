"""Time and memory of a training step on 1 to 256 ranks, from arithmetic alone.

    step = overhead + compute + communication + optimizer

    compute        3 x forward operations (4 x when blocks are computed again) / achieved rate
    communication  bytes that a ring moves / bandwidth of its slowest link + latencies; not hidden
                   behind the backward pass, since our plain backend reduces after it
    optimizer      bytes that AdamW reads and writes / bandwidth of the memory

docs/scaling.md has the assumptions, and how far measurements on one and two ranks agree.
"""

import math
from dataclasses import dataclass, replace

from pipelines.errors import ConfigError

GIB = 2**30
FLOAT_BYTES = 4
# AdamW reads the gradient, reads and writes the parameter and two moments, and clears the gradient
_OPTIMIZER_BYTES = 8 * FLOAT_BYTES
# the backward pass costs two forward passes: one product for the inputs, one for the weights
_PASSES, _RECOMPUTED_PASSES = 3, 4


@dataclass(frozen=True, kw_only=True)
class Link:
    """A connection: bytes per second in one direction, and seconds before the first one arrives."""

    bandwidth: float
    latency: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one rank computes on, and how ranks are connected.

    flops: operations per second that the model achieves, not the peak. memory_bandwidth: bytes per
    second. overhead: seconds of a step that are spent whatever its size. local: between ranks of
    a node. remote: of a whole node to the others.
    """

    name: str
    flops: float
    memory_gib: float
    memory_bandwidth: float
    overhead: float
    ranks_per_node: int
    local: Link
    remote: Link


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one optimizer step computes, over all ranks together.

    num_values: trained parameters. forward_flops: of the whole step. activation_bytes: kept by one
    forward pass of all ranks, for one micro-batch. batch_sizes: images of a micro-batch, by task.
    """

    num_values: int
    forward_flops: float
    activation_bytes: float
    batch_sizes: tuple[int, ...]
    accumulation: int = 1
    is_averaged: bool = False
    is_recomputed: bool = False

    @property
    def num_images(self) -> int:
        """Of the whole step."""
        return sum(self.batch_sizes) * self.accumulation

    def divides_among(self, num_ranks: int) -> bool:
        """Whether every rank can have the same number of images of each task."""
        return all(size % num_ranks == 0 for size in self.batch_sizes)

    def with_share_of(self, num_ranks: int, new_num_ranks: int) -> "Work":
        """The work of other ranks, each of which has the share that one of `num_ranks` has here."""
        factor = new_num_ranks / num_ranks
        return replace(
            self,
            forward_flops=self.forward_flops * factor,
            activation_bytes=self.activation_bytes * factor,
            batch_sizes=tuple(round(size * factor) for size in self.batch_sizes),
        )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Of one rank: seconds by part, and bytes by part."""

    num_ranks: int
    zero_stage: int
    seconds: dict[str, float]
    bytes_kept: dict[str, float]
    images_per_second: float

    @property
    def step_seconds(self) -> float:
        """All parts one after another."""
        return sum(self.seconds.values())

    @property
    def memory_gib(self) -> float:
        """All parts together."""
        return sum(self.bytes_kept.values()) / GIB


def predict(work: Work, machine: Machine, *, num_ranks: int, zero_stage: int) -> Prediction:
    """A step of `work` on `num_ranks` of these machines; stage 0 is the plain backend too.

    Raises:
        ConfigError: a number of ranks below 1, or a ZeRO stage that does not exist.
    """
    if num_ranks < 1 or zero_stage not in (0, 1, 2, 3):
        raise ConfigError(
            f"scaling: needs at least one rank and a ZeRO stage of 0 to 3; got {num_ranks} ranks "
            f"and stage {zero_stage}."
        )
    passes = _RECOMPUTED_PASSES if work.is_recomputed else _PASSES
    shards = num_ranks if zero_stage else 1
    seconds = {
        "overhead": machine.overhead,
        "compute": passes * work.forward_flops / num_ranks / machine.flops,
        "communication": communication_seconds(
            work, machine, num_ranks=num_ranks, zero_stage=zero_stage
        ),
        "optimizer": work.num_values * _OPTIMIZER_BYTES / shards / machine.memory_bandwidth,
    }
    kept = state_bytes(
        work.num_values, num_ranks=num_ranks, zero_stage=zero_stage, is_averaged=work.is_averaged
    )
    kept["activations"] = work.activation_bytes / num_ranks
    return Prediction(
        num_ranks=num_ranks,
        zero_stage=zero_stage,
        seconds=seconds,
        bytes_kept=kept,
        images_per_second=work.num_images / sum(seconds.values()),
    )


def state_bytes(
    num_values: int, *, num_ranks: int, zero_stage: int, is_averaged: bool
) -> dict[str, float]:
    """Bytes of float32 state on one rank, by part; ZeRO shards one part more with each stage."""
    whole = num_values * FLOAT_BYTES
    copies = {"weights": 1, "gradients": 1, "moments": 2, "average": int(is_averaged)}
    sharded_from = {"weights": 3, "gradients": 2, "moments": 1, "average": math.inf}
    return {
        part: math.ceil(whole * count / (num_ranks if zero_stage >= sharded_from[part] else 1))
        for part, count in copies.items()
    }


def communication_seconds(
    work: Work, machine: Machine, *, num_ranks: int, zero_stage: int
) -> float:
    """Of all collectives of a step.

    An all-reduce is a reduce-scatter and an all-gather. Up to stage 2 a step has one of each, of
    gradients or of new weights; from stage 2 on every micro-batch scatters its gradients; stage 3
    gathers the weights twice in each micro-batch, for its forward and its backward pass.
    """
    if num_ranks == 1:
        return 0.0
    size = work.num_values * FLOAT_BYTES
    halves = {
        0: 2,
        1: 2,
        2: work.accumulation + 1,
        3: 3 * work.accumulation,
    }[zero_stage]
    return halves * ring_seconds(size, machine, num_ranks)


def ring_seconds(size: float, machine: Machine, num_ranks: int) -> float:
    """Of a reduce-scatter or an all-gather of `size` bytes over a ring.

    Rings that cross nodes use all adapters of a node together, and wait for the slower link.
    """
    link = machine.local
    if num_ranks > machine.ranks_per_node:
        slower = min(machine.local.bandwidth, machine.remote.bandwidth)
        link = Link(bandwidth=slower, latency=machine.remote.latency)
    moved = size * (num_ranks - 1) / num_ranks
    return moved / link.bandwidth + (num_ranks - 1) * link.latency


# Peaks, memories and links are from the vendors' data sheets: bfloat16 without sparsity (float16
# for V100), NVLink in one direction, one adapter per GPU for A100 and H100, four for V100.
# Achieved rates, overheads and latencies are assumptions: nobody has run this trainer on them.
_ASSUMED_SHARE_OF_PEAK = 0.25
_ASSUMED_OVERHEAD = 0.05
_LOCAL_LATENCY, _REMOTE_LATENCY = 5e-6, 15e-6


def _gpu(
    name: str, tflops: float, gib: float, gb_per_s: float, nvlink: float, network: float
) -> Machine:
    return Machine(
        name=name,
        flops=_ASSUMED_SHARE_OF_PEAK * tflops * 1e12,
        memory_gib=gib,
        memory_bandwidth=gb_per_s * 1e9,
        overhead=_ASSUMED_OVERHEAD,
        ranks_per_node=8,
        local=Link(bandwidth=nvlink * 1e9, latency=_LOCAL_LATENCY),
        remote=Link(bandwidth=network * 1e9, latency=_REMOTE_LATENCY),
    )


GPUS = {
    "v100": _gpu("V100", tflops=125, gib=32, gb_per_s=900, nvlink=150, network=50),
    "a100": _gpu("A100", tflops=312, gib=80, gb_per_s=2039, nvlink=300, network=200),
    "h100": _gpu("H100", tflops=989, gib=80, gb_per_s=3350, nvlink=450, network=400),
}
