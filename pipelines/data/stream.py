"""The training stream: `(batches, state)` without end, in an order that nothing but the seed moves.

    plan_steps            which samples (mixture.py): pure arithmetic, in the training process
        | StepPlan            draws of this rank, state after the step
        v
    StepBuilder           read, decode, crop: here, or one step per worker process
        | BuiltStep           in plan order, because the loader keeps the order of its requests;
        |                     its arrays in a slab of memory that both processes see
        v
    DataStream            one copy to the device, where batches are made at their full size
        | (batches, state)
        v
    the loop              saves `state` in the checkpoint; build_stream(state=...) goes on after it

A worker gets a plan and gives back a step, so neither the number of workers nor what they had
prefetched when the run stopped is part of the state. A damaged sample is replaced by the worker
that meets it, by a rule that needs to know nothing but its place in the order.
"""

import atexit
import signal
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pipelines.data.collate import collate_detection, collate_image_text, collate_segmentation
from pipelines.data.compact import (
    CompactSample,
    compact_detection,
    compact_image_text,
    compact_segmentation,
    step_bytes,
)
from pipelines.data.config import DataConfig
from pipelines.data.mixture import Draw, StepPlan, TaskMixture, plan_steps, substitute
from pipelines.data.source import Sources, open_sources
from pipelines.data.step_memory import SlabRing, StepMemory
from pipelines.data.tolerance import Damage
from pipelines.errors import DamagedSampleError, DataError
from xdecoder.batch import Batch

StepItem = tuple[tuple[Batch, ...], dict[str, Any]]

# further samples that are tried in the place of a damaged one
_MAX_ATTEMPTS = 16
# a step is in the hands of the training process while the worker has begun another
_SLABS_IN_HAND = 1


@dataclass(frozen=True, kw_only=True)
class BuiltStep:
    """One rank's step: its samples by task, their arrays in the first `used` bytes of a slab."""

    slab: int
    used: int
    sources: dict[str, int]
    samples: dict[str, tuple[CompactSample, ...]]
    state: dict[str, Any]
    damage: tuple[Damage, ...]


class StepBuilder(Dataset[BuiltStep | DataError]):
    """Turns a plan into one rank's step, in memory of its own or of the ring."""

    def __init__(
        self,
        config: DataConfig,
        sources: Sources,
        mixtures: tuple[TaskMixture, ...],
        *,
        seed: int,
        num_bytes: int,
        ring: SlabRing | None = None,
    ) -> None:
        self.config = config
        self.sources = sources
        self.mixtures = mixtures
        self.seed = seed
        self.ring = ring
        self._own = torch.empty(0 if ring else num_bytes, dtype=torch.uint8)

    def memory(self, slab: int) -> torch.Tensor:
        """The memory of a built step."""
        return self._own if self.ring is None else self.ring.memory(slab)

    def __getitem__(self, plan: StepPlan) -> BuiltStep | DataError:
        """The step, or the error that ends the stream: raised in a worker it would be garbled."""
        worker = get_worker_info()
        slab = self.ring.take(worker.id) if self.ring and worker else 0
        memory = StepMemory(self.memory(slab))
        damage: list[Damage] = []
        try:
            samples = {
                task: tuple(self._sample(task, draw, memory, damage) for draw in draws)
                for task, draws in plan.draws.items()
            }
        except DataError as error:
            return error
        return BuiltStep(
            slab=slab,
            used=memory.used,
            sources={task: draws[0].source for task, draws in plan.draws.items()},
            samples=samples,
            state=plan.state,
            damage=tuple(damage),
        )

    def _sample(
        self, task: str, draw: Draw, memory: StepMemory, damage: list[Damage]
    ) -> CompactSample:
        """The sample of a draw, or of the first substitute that is not damaged."""
        wanted, used = draw, memory.used
        for attempt in range(_MAX_ATTEMPTS + 1):
            try:
                return self._compact(task, draw, memory)
            except DamagedSampleError as error:
                memory.used = used
                damage.append(
                    Damage(
                        task=task,
                        epoch=draw.epoch,
                        shard=error.shard,
                        key=error.key,
                        reason=error.reason,
                    )
                )
                draw = self._substitute(task, wanted, attempt)
        raise DataError(
            f"data.{task}: in the place of a damaged sample, one of {_MAX_ATTEMPTS} others must be "
            f"whole; none is. The first: {damage[-_MAX_ATTEMPTS - 1]}"
        )

    def _compact(self, task: str, draw: Draw, memory: StepMemory) -> CompactSample:
        source, config = self.sources[task][draw.source], self.config
        raw, seed, epoch = source.read(draw.sample), self.seed, draw.epoch
        if task == "image_text":
            return compact_image_text(raw, config.image_text, memory, seed=seed, epoch=epoch)
        if task == "detection":
            is_thing = source.vocabulary.is_thing
            return compact_detection(
                raw, config.detection, memory, seed=seed, epoch=epoch, is_thing=is_thing
            )
        num_classes = len(source.vocabulary.names)
        return compact_segmentation(
            raw, config.segmentation, memory, seed=seed, epoch=epoch, num_classes=num_classes
        )

    def _substitute(self, task: str, draw: Draw, attempt: int) -> Draw:
        (number,) = (i for i, mixture in enumerate(self.mixtures) if mixture.name == task)
        return substitute(
            draw,
            attempt,
            sizes=self.mixtures[number].sources[draw.source].samples_per_shard,
            seed=(self.seed, number, draw.source),
            window=self.config.shuffle_window,
        )


class DataStream(Iterator[StepItem]):
    """Steps without end; `close` ends its workers, and so does the end of the process.

    device: where batches are made. on_damage: is told every damaged sample; without it such a
    sample ends the stream. Both may be set before the first step.
    """

    def __init__(self, builder: StepBuilder, plans: Iterator[StepPlan]) -> None:
        config = builder.config
        self.device = torch.device("cpu")
        self.on_damage: Callable[[Damage], None] | None = None
        self._builder = builder
        self._items: Iterator[BuiltStep | DataError] = (
            iter(_worker_loader(builder, plans, config.num_workers, config.prefetch))
            if config.num_workers
            else map(builder.__getitem__, plans)
        )
        if config.num_workers:
            # before multiprocessing's own end-of-process hook, which would wait for ever for
            # workers that ignore its signal
            atexit.register(_close_if_alive, weakref.ref(self))

    def __next__(self) -> StepItem:
        step = self.next_built()
        memory = self.staged(step)
        batches = tuple(self._batch(step, task, memory) for task in step.samples)
        self.give_back(step)
        return batches, step.state

    def next_built(self) -> BuiltStep:
        """The next step as its worker left it; `give_back` it before asking for another.

        Raises:
            DataError: of reading, or of a damaged sample that nobody wants to hear of.
        """
        try:
            step = next(self._items)
        except BaseException:
            # the traceback keeps the loader alive, and workers that ignore signals with it
            self.close()
            raise
        if isinstance(step, BuiltStep):
            for damage in step.damage:
                if self.on_damage is None:
                    self.close()
                    raise DataError(str(damage))
                self.on_damage(damage)
            return step
        self.close()
        raise step

    def staged(self, step: BuiltStep) -> torch.Tensor:
        """The bytes of a step where batches are made of them; on the CPU they are not copied."""
        memory = self._builder.memory(step.slab)[: step.used]
        if self.device.type == "cpu":
            return memory
        # pinned memory is a copy that nobody writes over while the device still reads it
        memory = memory.pin_memory() if self._builder.config.pin_memory else memory
        return memory.to(self.device, non_blocking=self._builder.config.pin_memory)

    def give_back(self, step: BuiltStep) -> None:
        """Let the worker use the memory of the step again."""
        if self._builder.ring is not None:
            self._builder.ring.give_back(step.slab)

    def close(self) -> None:
        """Ends the worker processes; the stream has no further items."""
        items, self._items = self._items, iter(())
        if isinstance(items, _MultiProcessingDataLoaderIter):
            items._shutdown_workers()

    def _batch(self, step: BuiltStep, task: str, memory: torch.Tensor) -> Batch:
        samples: Any = step.samples[task]
        if task == "image_text":
            return collate_image_text(samples, memory)
        source = self._builder.sources[task][step.sources[task]]
        if task == "detection":
            return collate_detection(samples, source.vocabulary, memory)
        return collate_segmentation(samples, source.vocabulary, memory)


def build_stream(
    config: DataConfig,
    *,
    rank: int,
    world_size: int,
    seed: int,
    state: dict[str, Any] | None = None,
) -> DataStream:
    """One rank's share of every step from `state` on: `(batches, state after the step)`.

    The batches come in the order of `DataConfig.parts`, without the tasks whose batch size is 0.
    The state is a small JSON-able dictionary, the same on every rank, and fits any rank, world size
    and worker count.

    Raises:
        ConfigError: no shards for a task, or a batch size that the ranks cannot share.
        DataError: shards are missing or damaged, or `state` belongs to other data.
    """
    sources = open_sources(config)
    mixtures = _mixtures(config, sources)
    plans = plan_steps(
        mixtures,
        rank=rank,
        world_size=world_size,
        seed=seed,
        window=config.shuffle_window,
        state=state,
    )
    num_bytes = step_bytes(config.parts().values(), world_size=world_size)
    ring = None
    if config.num_workers:
        ring = SlabRing(
            num_workers=config.num_workers,
            slabs_per_worker=config.prefetch + _SLABS_IN_HAND,
            num_bytes=num_bytes,
        )
    builder = StepBuilder(config, sources, mixtures, seed=seed, num_bytes=num_bytes, ring=ring)
    return DataStream(builder, plans)


def _mixtures(config: DataConfig, sources: Sources) -> tuple[TaskMixture, ...]:
    mixtures = []
    for task, opened in sources.items():
        part = config.parts()[task]
        sizes = tuple(source.size() for source in opened)
        weights = part.weights or tuple(float(size.num_samples) for size in sizes)
        mixtures.append(
            TaskMixture(name=task, batch_size=part.batch_size, sources=sizes, weights=weights)
        )
    return tuple(mixtures)


class _PlanSampler(Sampler[StepPlan]):
    def __init__(self, plans: Iterator[StepPlan]) -> None:
        self._plans = plans

    def __iter__(self) -> Iterator[StepPlan]:
        return self._plans


def _worker_loader(
    builder: StepBuilder, plans: Iterator[StepPlan], num_workers: int, prefetch: int
) -> DataLoader[BuiltStep | DataError]:
    return DataLoader(
        builder,
        batch_size=None,
        sampler=_PlanSampler(plans),
        num_workers=num_workers,
        prefetch_factor=prefetch,
        collate_fn=_unchanged,
        worker_init_fn=_shield_from_signals,
    )


def _unchanged(item: Any) -> Any:
    return item


def _shield_from_signals(worker: int) -> None:
    # a signal for the whole step must reach the training process only: it still needs its workers
    # to finish the step and write the checkpoint
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _close_if_alive(reference: "weakref.ref[DataStream]") -> None:
    stream = reference()
    if stream is not None:
        stream.close()
