"""What a run would be: shapes, parameters, memory and batches, without a step of training."""

import math
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
from pipelines.engine.optim import ParameterGroup, group_table, parameter_groups
from pipelines.engine.session import build_losses
from pipelines.errors import DataError
from pipelines.families import TrainedModel
from xdecoder.batch import Batch, SegmentationBatch
from xdecoder.losses.draws import Draws
from xdecoder.tasks import MultiTask

_MIB = 2**20
_FLOAT_BYTES = 4
# bytes of a float32 parameter: itself, its gradient, two moments, and its average
_NUM_COPIES = {"weights": 1, "gradients": 1, "moments": 2, "average": 1}


def dry_run(config: RunConfig, *, place: ProcessPlace, device: torch.device) -> None:
    """Print what a run would be; rank 0 only."""
    if not place.is_main:
        return
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
        console.print(shape_table(losses.model, batches))
        activations = activation_bytes(losses, batches, config.seed)
    console.print(memory_table(config, groups, activations, place.world_size))


def batch_table(config: RunConfig, world_size: int) -> Table:
    """How the images of a step are spread over ranks and micro-batches."""
    table = Table(title=f"batches: {config.steps} steps, {world_size} rank(s)")
    table.add_column("task")
    for name in ("size (h, w)", "in a micro-batch", "per rank", "in a step", "in the run"):
        table.add_column(name, justify="right")
    accumulation = config.parallel.accumulation
    for task, part in (
        ("segmentation", config.data.segmentation),
        ("image_text", config.data.image_text),
    ):
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
    values = sum(group.num_values for group in groups)
    shards = world_size if config.parallel.backend == "deepspeed" else 1
    is_averaged = config.optimizer.ema_decay > 0
    table = Table(title="memory per rank, estimated")
    table.add_column("part")
    table.add_column("MiB", justify="right")
    total = activations
    for part, copies in _NUM_COPIES.items():
        size = values * copies * _FLOAT_BYTES
        size = math.ceil(size / shards) if part == "moments" else size
        size = size if is_averaged or part != "average" else 0
        total += size
        table.add_row(part, f"{size / _MIB:,.1f}")
    table.add_row("activations kept for backward", f"{activations / _MIB:,.1f}")
    table.add_row("together", f"{total / _MIB:,.1f}")
    return table


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


def _first_batches(config: RunConfig, place: ProcessPlace) -> tuple[Batch, ...]:
    stream = build_stream(
        config.data, rank=place.rank, world_size=place.world_size, seed=config.seed
    )
    return tuple(next(iter(stream))[0])
