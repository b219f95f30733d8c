"""What a run would be: shapes, parameters, memory and batches, without a step of training."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pipelines.config import RunConfig
from pipelines.data.stream import build_stream
from pipelines.engine.distributed import ProcessPlace
from pipelines.engine.generators import seed_generators
from pipelines.engine.machine import to_device
from pipelines.engine.optim import BUCKET_VALUES, ParameterGroup, group_table, parameter_groups
from pipelines.engine.scaling_model import FLOAT_BYTES, GPUS, Work, state_bytes
from pipelines.engine.scaling_table import count_table, growth_table, stage_table
from pipelines.engine.session import build_losses
from pipelines.engine.workload import forward_flops
from pipelines.errors import ConfigError, DataError
from pipelines.families import TrainedModel
from xdecoder.batch import Batch, DetectionBatch, SegmentationBatch
from xdecoder.losses.draws import Draws
from xdecoder.tasks import MultiTask

_MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Other machines that a run is imagined on: `num_gpus` of a kind in `GPUS`."""

    num_gpus: int
    gpu: str = "a100"

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            raise ConfigError(f"--gpus must be at least 1; got {self.num_gpus}.")

    @classmethod
    def asked(cls, num_gpus: int | None, gpu: str) -> "Elsewhere | None":
        """What the options `--gpus` and `--gpu` ask for; nothing without the first."""
        return None if num_gpus is None else cls(num_gpus=num_gpus, gpu=gpu)


def dry_run(
    config: RunConfig,
    *,
    place: ProcessPlace,
    device: torch.device,
    elsewhere: Elsewhere | None = None,
) -> None:
    """Print what a run would be; rank 0 only.

    elsewhere: also predict time and memory of a step there, and show the share of one of its GPUs.
    """
    if not place.is_main:
        return
    if elsewhere is not None:
        place = dataclasses.replace(place, world_size=elsewhere.num_gpus)
    console = Console(width=max(100, Console().width))
    seed_generators(config.seed, rank=0)
    losses = build_losses(config, device)
    groups = parameter_groups(losses.model, config.optimizer)
    console.print(group_table(groups, losses.model))
    console.print(batch_table(config, place.world_size))
    try:
        batches = _first_batches(config, place)
    except DataError as error:
        console.print(f"no data, so no shapes and activations: {error}")
        batches = ()
    activations = 0
    if batches:
        batches = to_device(batches, device)
        assert isinstance(losses.model, TrainedModel)
        console.print(shape_table(losses.model, batches))
        activations = activation_bytes(losses, batches, config.seed)
    console.print(memory_table(config, groups, activations, place.world_size))
    if elsewhere is not None and batches:
        flops = forward_flops(losses, batches, config.seed)
        work = work_of(config, groups, flops, activations, place.world_size)
        for table in prediction_tables(config, work, elsewhere):
            console.print(table)
        console.print("assumptions and how far they were checked: docs/scaling.md")


def prediction_tables(config: RunConfig, work: Work, elsewhere: Elsewhere) -> tuple[Table, ...]:
    """The step by ZeRO stage there, divided among other numbers of GPUs, and grown with them."""
    machine, num_ranks, steps = GPUS[elsewhere.gpu], elsewhere.num_gpus, config.steps
    stage = _stage_of(config)
    return (
        stage_table(work, machine, num_ranks=num_ranks, num_steps=steps),
        count_table(work, machine, zero_stage=stage, num_steps=steps),
        growth_table(work, machine, num_ranks=num_ranks, zero_stage=stage, num_steps=steps),
    )


def work_of(
    config: RunConfig,
    groups: Sequence[ParameterGroup],
    flops: int,
    activations: int,
    world_size: int,
) -> Work:
    """The work of a whole step, from that of one rank's share of one micro-batch."""
    data, accumulation = config.data, config.parallel.accumulation
    return Work(
        num_values=_num_trained(groups),
        forward_flops=flops * world_size * accumulation,
        activation_bytes=activations * world_size,
        batch_sizes=tuple(part.batch_size for part in data.parts().values()),
        accumulation=accumulation,
        is_averaged=config.optimizer.ema_decay > 0,
        is_recomputed=config.parallel.checkpoint_activations,
    )


def batch_table(config: RunConfig, world_size: int) -> Table:
    """How the images of a step are spread over ranks and micro-batches."""
    table = Table(title=f"batches: {config.steps} steps, {world_size} rank(s)")
    table.add_column("task")
    for name in ("size (h, w)", "in a micro-batch", "per rank", "in a step", "in the run"):
        table.add_column(name, justify="right")
    accumulation = config.parallel.accumulation
    trained = {task: part for task, part in config.data.parts().items() if part.batch_size}
    for task, part in trained.items():
        in_step = part.batch_size * accumulation
        table.add_row(
            task,
            str(part.size_hw),
            str(part.batch_size),
            f"{part.batch_size / world_size:g}",
            f"{in_step} ({accumulation} x {part.batch_size})",
            f"{in_step * config.steps:,}",
        )
    return table


def shape_table(model: TrainedModel, batches: Sequence[Batch]) -> Table:
    """The shapes of the first batches and of the features they become."""
    table = Table(title="shapes on rank 0")
    table.add_column("what")
    table.add_column("shape")
    for batch in batches:
        table.add_row(f"{batch.task}: images", str(list(batch.images.shape)))
        if isinstance(batch, SegmentationBatch):
            counts = [len(segments.class_ids) for segments in batch.segments]
            table.add_row(f"{batch.task}: segments per image", str(counts))
            counts = [len(phrases.phrases) for phrases in batch.phrases]
            table.add_row(f"{batch.task}: phrases per image", str(counts))
        if isinstance(batch, DetectionBatch):
            counts = [len(boxes.class_ids) for boxes in batch.boxes]
            table.add_row(f"{batch.task}: boxes per image", str(counts))
        with torch.no_grad():
            features = model.encode_images(batch.images)
        for index, level in enumerate(features.levels):
            table.add_row(f"{batch.task}: level {index}", str(list(level.shape)))
        shape = str(list(features.mask_features.shape))
        table.add_row(f"{batch.task}: mask features", shape)
    return table


def memory_table(
    config: RunConfig, groups: Sequence[ParameterGroup], activations: int, world_size: int
) -> Table:
    """An estimate of memory per rank, by part; kernels' scratch space is not in it."""
    state = state_bytes(
        _num_trained(groups),
        num_ranks=world_size,
        zero_stage=_stage_of(config),
        is_averaged=config.optimizer.ema_decay > 0,
    )
    state |= _zero_overhead(_num_trained(groups), config, world_size)
    table = Table(title="memory per rank, estimated")
    table.add_column("part")
    table.add_column("MiB", justify="right")
    for part, size in state.items():
        table.add_row(part, f"{size / _MIB:,.1f}")
    total = activations + sum(state.values())
    table.add_row("activations kept for backward", f"{activations / _MIB:,.1f}")
    table.add_row("together", f"{total / _MIB:,.1f}")
    return table


def _zero_overhead(num_values: int, config: RunConfig, world_size: int) -> dict[str, float]:
    """What DeepSpeed keeps beside the state: measured by counting the bytes of live tensors."""
    if config.parallel.backend != "deepspeed" or config.parallel.zero_stage == 0:
        return {}
    return {
        "the optimizer's own weights": num_values * FLOAT_BYTES / world_size,
        "bucket of gradients": min(num_values, BUCKET_VALUES) * FLOAT_BYTES,
    }


def activation_bytes(losses: MultiTask, batches: Sequence[Batch], seed: int) -> int:
    """Bytes that one forward pass keeps for its backward pass, parameters not counted."""
    own = {value.untyped_storage().data_ptr() for value in losses.parameters()}
    with _counting(own) as kept:
        losses(batches, Draws(seed, 0, 0))
    return sum(kept.values())


@contextmanager
def _counting(ignored: set[int]) -> Iterator[dict[int, int]]:
    """Sizes of storages that autograd keeps, by address; shared storage counts once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignored:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _num_trained(groups: Sequence[ParameterGroup]) -> int:
    return sum(group.num_values for group in groups)


def _stage_of(config: RunConfig) -> int:
    parallel = config.parallel
    return parallel.zero_stage if parallel.backend == "deepspeed" else 0


def _first_batches(config: RunConfig, place: ProcessPlace) -> tuple[Batch, ...]:
    stream = build_stream(
        config.data, rank=place.rank, world_size=place.world_size, seed=config.seed
    )
    return tuple(next(iter(stream))[0])
