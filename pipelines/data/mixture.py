"""The order of training as arithmetic: which samples make up which step.

    seed, task, source, epoch  ->  permutation of the samples (shards shuffled, mixed in windows)
    seed, task, step           ->  which source a task's batch comes from
    drawn                      ->  samples taken so far = (epoch, position in its permutation)

A global batch is a run of consecutive positions; rank r of W takes its r-th contiguous part, so
that the parts of all ranks in order are the global batch whatever W is. The state after a step is
the counters, the same on every rank; nothing is replayed to get back to it. The place of a damaged
sample is taken by one that is half an epoch away, which every rank and worker would find alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from pipelines.errors import ConfigError, DataError

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SourceSize:
    """How many usable samples each shard of a source has."""

    name: str
    samples_per_shard: tuple[int, ...]

    @property
    def num_samples(self) -> int:
        return sum(self.samples_per_shard)


@dataclass(frozen=True, kw_only=True)
class TaskMixture:
    """What one task draws in a step: `batch_size` samples of one source, chosen by weight."""

    name: str
    batch_size: int
    sources: tuple[SourceSize, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One sample: a row among the usable samples of a source, in one pass over them.

    place: in the order of the epoch.
    """

    source: int
    sample: int
    epoch: int
    place: int


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The draws of one rank in one step, by task, and the state after that step."""

    draws: dict[str, tuple[Draw, ...]]
    state: dict[str, Any]


@lru_cache(maxsize=8)
def epoch_order(
    samples_per_shard: tuple[int, ...], seed: tuple[int, ...], epoch: int, window: int
) -> Int[ndarray, " n"]:
    """The samples of a source in the order of one epoch, each once.

    Shards are shuffled; then each `window` of consecutive shards is mixed sample by sample, so that
    reading stays within a few shards at a time.
    """
    rng = np.random.default_rng((*seed, epoch))
    starts = np.concatenate([[0], np.cumsum(samples_per_shard)])
    shards = rng.permutation(len(samples_per_shard))
    parts = []
    for first in range(0, len(shards), window):
        rows = [np.arange(starts[s], starts[s + 1]) for s in shards[first : first + window]]
        parts.append(rng.permutation(np.concatenate(rows)))
    return np.concatenate(parts)


def plan_steps(
    mixtures: tuple[TaskMixture, ...],
    *,
    rank: int,
    world_size: int,
    seed: int,
    window: int,
    state: dict[str, Any] | None,
) -> Iterator[StepPlan]:
    """Plans without end, from the step after `state`.

    Raises:
        ConfigError: a batch size is not a multiple of the world size.
        DataError: the state belongs to other data or another seed.
    """
    for mixture in mixtures:
        if mixture.batch_size % world_size:
            raise ConfigError(
                f"data.{mixture.name}.batch_size must be a multiple of the number of ranks "
                f"({world_size}); got {mixture.batch_size}."
            )
    state = initial_state(mixtures, seed) if state is None else _checked(state, mixtures, seed)
    step, drawn = state["step"], {name: list(counts) for name, counts in state["drawn"].items()}
    while True:
        draws = {}
        for task, mixture in enumerate(mixtures):
            source = _choose_source(mixture, seed, task, step)
            first = drawn[mixture.name][source]
            share = mixture.batch_size // world_size
            start = first + rank * share
            sizes = mixture.sources[source].samples_per_shard
            draws[mixture.name] = tuple(
                _draw(source, position, sizes, (seed, task, source), window)
                for position in range(start, start + share)
            )
            drawn[mixture.name][source] = first + mixture.batch_size
        step += 1
        after = {**state, "step": step, "drawn": {k: list(v) for k, v in drawn.items()}}
        yield StepPlan(draws=draws, state=after)


def substitute(
    draw: Draw,
    attempt: int,
    *,
    sizes: tuple[int, ...],
    seed: tuple[int, ...],
    window: int,
) -> Draw:
    """What is drawn instead of a damaged sample, after `attempt` others were damaged as well.

    seed: that of the order of its source. The substitute comes at its own place too.
    """
    place = (draw.place + sum(sizes) // 2 + attempt) % sum(sizes)
    sample = int(epoch_order(sizes, seed, draw.epoch, window)[place])
    return replace(draw, sample=sample)


def initial_state(mixtures: tuple[TaskMixture, ...], seed: int) -> dict[str, Any]:
    """The state before the first step; JSON can hold it."""
    return {
        "version": STATE_VERSION,
        "seed": seed,
        "step": 0,
        "drawn": {mixture.name: [0] * len(mixture.sources) for mixture in mixtures},
        "num_samples": {m.name: [s.num_samples for s in m.sources] for m in mixtures},
    }


def num_drawn(state: dict[str, Any]) -> int:
    """How many samples all ranks have drawn, by the state of a stream."""
    return sum(sum(counts) for counts in state.get("drawn", {}).values())


def _checked(state: dict[str, Any], mixtures: tuple[TaskMixture, ...], seed: int) -> dict[str, Any]:
    expected = initial_state(mixtures, seed)
    for field in ("version", "seed", "num_samples"):
        if state.get(field) != expected[field]:
            raise DataError(
                f"data state: {field} must be {expected[field]}, as the configured data has it; "
                f"got {state.get(field)}. Resume with the data and seed of the saved run."
            )
    return state


def _choose_source(mixture: TaskMixture, seed: int, task: int, step: int) -> int:
    if len(mixture.sources) == 1:
        return 0
    weights = np.array(mixture.weights)
    rng = np.random.default_rng((seed, task, step))
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def _draw(
    source: int, position: int, sizes: tuple[int, ...], seed: tuple[int, ...], window: int
) -> Draw:
    epoch, place = divmod(position, sum(sizes))
    sample = int(epoch_order(sizes, seed, epoch, window)[place])
    return Draw(source=source, sample=sample, epoch=epoch, place=place)
