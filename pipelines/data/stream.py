"""The training stream: `(batches, state)` without end, in an order that nothing but the seed moves.

    plan_steps            which samples (mixture.py): pure arithmetic, in the training process
        | StepPlan            draws of this rank, state after the step
        v
    StepBuilder           read, decode, augment, collate: here, or one step per worker process
        | (batches, state)    in plan order, because the loader keeps the order of its requests
        v
    the loop              saves `state` in the checkpoint; build_stream(state=...) goes on after it

A worker gets a plan and gives back a step, so neither the number of workers nor what they had
prefetched when the run stopped is part of the state.
"""

import atexit
import signal
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray
from torch.utils.data import DataLoader, Dataset, Sampler

from pipelines.data.collate import (
    build_image_text_sample,
    build_segmentation_sample,
    collate_image_text,
    collate_segmentation,
)
from pipelines.data.config import DataConfig, ImageTextDataConfig, SegmentationDataConfig
from pipelines.data.mixture import Draw, SourceSize, StepPlan, TaskMixture, plan_steps
from pipelines.data.shards import (
    RawSample,
    ShardInfo,
    read_index,
    read_manifest,
    read_sample,
)
from pipelines.errors import ConfigError, DataError
from xdecoder.batch import Batch, ImageTextBatch, SegmentationBatch, Vocabulary

StepItem = tuple[tuple[Batch, ...], dict[str, Any]]

# the order of the batches in a step
TASKS = ("segmentation", "image_text")
# a sample takes part in a task if this count of its index row is positive
_NEEDS = {"segmentation": "num_segments", "image_text": "num_captions"}


@dataclass(frozen=True, kw_only=True)
class ShardSource:
    """The samples of one folder of shards that one task can use."""

    folder: Path
    shards: tuple[ShardInfo, ...]
    vocabulary: Vocabulary
    index: ndarray
    rows: Int[ndarray, " n"]

    @classmethod
    def open(cls, folder: str | Path, split: str, task: str) -> "ShardSource":
        """The source of a task in a folder.

        Raises:
            DataError: the folder has no such split, or no sample of it serves the task.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        info = manifest.split(folder, split)
        index = read_index(folder, info)
        rows = np.flatnonzero(index[_NEEDS[task]] > 0)
        if len(rows) == 0:
            raise DataError(
                f"{folder}: the {task} task needs samples with {_NEEDS[task]} > 0 in split "
                f"{split!r}; none of {len(index)} has. Set data.{task}.batch_size=0 or add data."
            )
        return cls(
            folder=folder,
            shards=info.shards,
            vocabulary=Vocabulary(names=manifest.names, is_thing=manifest.is_thing),
            index=index,
            rows=rows,
        )

    def size(self) -> SourceSize:
        """How many usable samples each shard has."""
        counts = np.bincount(self.index["shard"][self.rows], minlength=len(self.shards))
        return SourceSize(
            name=str(self.folder), samples_per_shard=tuple(int(count) for count in counts)
        )

    def read(self, sample: int) -> RawSample:
        """The sample with this number among the usable ones."""
        row = self.index[self.rows[sample]]
        return read_sample(self.folder, self.shards[row["shard"]], row)


class StepBuilder(Dataset[StepItem | DataError]):
    """Turns a plan into the batches of one rank's step."""

    def __init__(
        self, config: DataConfig, sources: dict[str, tuple[ShardSource, ...]], *, seed: int
    ) -> None:
        self.config = config
        self.sources = sources
        self.seed = seed

    def __getitem__(self, plan: StepPlan) -> StepItem | DataError:
        """The step, or the error of one of its samples: raised in a worker it would be garbled."""
        try:
            return tuple(self._batch(task, draws) for task, draws in plan.draws.items()), plan.state
        except DataError as error:
            return error

    def _batch(self, task: str, draws: tuple[Draw, ...]) -> Batch:
        if task == "segmentation":
            return self._segmentation(draws)
        return self._image_text(draws)

    def _segmentation(self, draws: tuple[Draw, ...]) -> SegmentationBatch:
        sources = self.sources["segmentation"]
        samples = [
            build_segmentation_sample(
                sources[draw.source].read(draw.sample),
                self.config.segmentation,
                seed=self.seed,
                epoch=draw.epoch,
            )
            for draw in draws
        ]
        return collate_segmentation(samples, sources[draws[0].source].vocabulary)

    def _image_text(self, draws: tuple[Draw, ...]) -> ImageTextBatch:
        sources = self.sources["image_text"]
        samples = [
            build_image_text_sample(
                sources[draw.source].read(draw.sample),
                self.config.image_text,
                seed=self.seed,
                epoch=draw.epoch,
            )
            for draw in draws
        ]
        return collate_image_text(samples)


class DataStream(Iterator[StepItem]):
    """Steps without end; `close` ends its workers, and so does the end of the process."""

    def __init__(
        self, builder: StepBuilder, plans: Iterator[StepPlan], *, num_workers: int, prefetch: int
    ) -> None:
        self._items: Iterator[StepItem | DataError] = (
            iter(_worker_loader(builder, plans, num_workers, prefetch))
            if num_workers
            else map(builder.__getitem__, plans)
        )
        if num_workers:
            # before multiprocessing's own end-of-process hook, which would wait for ever for
            # workers that ignore its signal
            atexit.register(_close_if_alive, weakref.ref(self))

    def __next__(self) -> StepItem:
        item = next(self._items)
        if isinstance(item, DataError):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Ends the worker processes; the stream has no further items."""
        self._items = iter(())


def build_stream(
    config: DataConfig,
    *,
    rank: int,
    world_size: int,
    seed: int,
    state: dict[str, Any] | None = None,
) -> DataStream:
    """One rank's share of every step from `state` on: `(batches, state after the step)`.

    The batches come in the order of `TASKS`, without the tasks whose batch size is 0. The state is
    a small JSON-able dictionary, the same on every rank, and fits any rank, world size and worker
    count.

    Raises:
        ConfigError: no shards for a task, or a batch size that the ranks cannot share.
        DataError: shards are missing or damaged, or `state` belongs to other data.
    """
    sources, mixtures = _open_sources(config)
    plans = plan_steps(
        mixtures,
        rank=rank,
        world_size=world_size,
        seed=seed,
        window=config.shuffle_window,
        state=state,
    )
    return DataStream(
        StepBuilder(config, sources, seed=seed),
        plans,
        num_workers=config.num_workers,
        prefetch=config.prefetch,
    )


def _open_sources(
    config: DataConfig,
) -> tuple[dict[str, tuple[ShardSource, ...]], tuple[TaskMixture, ...]]:
    sources: dict[str, tuple[ShardSource, ...]] = {}
    mixtures = []
    for task in TASKS:
        part: SegmentationDataConfig | ImageTextDataConfig = getattr(config, task)
        if part.batch_size == 0:
            continue
        if not part.shards:
            raise ConfigError(
                f"data.{task}.shards must name at least one folder of shards; got none. "
                f"Set it, or data.{task}.batch_size=0."
            )
        sources[task] = tuple(ShardSource.open(f, config.split, task) for f in part.shards)
        sizes = tuple(source.size() for source in sources[task])
        weights = part.weights or tuple(float(size.num_samples) for size in sizes)
        mixtures.append(
            TaskMixture(name=task, batch_size=part.batch_size, sources=sizes, weights=weights)
        )
    return sources, tuple(mixtures)


class _PlanSampler(Sampler[StepPlan]):
    def __init__(self, plans: Iterator[StepPlan]) -> None:
        self._plans = plans

    def __iter__(self) -> Iterator[StepPlan]:
        return self._plans


def _worker_loader(
    builder: StepBuilder, plans: Iterator[StepPlan], num_workers: int, prefetch: int
) -> DataLoader[StepItem | DataError]:
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
