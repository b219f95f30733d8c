import json
from itertools import islice

import numpy as np
import pytest

from pipelines.data.mixture import SourceSize, TaskMixture, epoch_order, plan_steps
from pipelines.errors import ConfigError, DataError

SIZES = (5, 3, 6, 2, 7)


def _mixture(name: str, batch_size: int, *sizes: tuple[int, ...], weights=None) -> TaskMixture:
    sources = tuple(SourceSize(name=str(i), samples_per_shard=s) for i, s in enumerate(sizes))
    weights = weights or tuple(float(sum(s)) for s in sizes)
    return TaskMixture(name=name, batch_size=batch_size, sources=sources, weights=weights)


MIXTURES = (_mixture("segmentation", 4, SIZES), _mixture("image_text", 8, SIZES))


def _plans(count: int, *, mixtures=MIXTURES, rank=0, world_size=1, seed=3, state=None) -> list:
    stream = plan_steps(
        mixtures, rank=rank, world_size=world_size, seed=seed, window=2, state=state
    )
    return list(islice(stream, count))


@pytest.mark.parametrize("window", [1, 2, 9])
def test_an_epoch_holds_every_sample_once(window: int) -> None:
    order = epoch_order(SIZES, (0,), 4, window)
    assert sorted(order) == list(range(sum(SIZES)))


def test_epochs_seeds_and_tasks_have_orders_of_their_own() -> None:
    orders = [
        epoch_order(SIZES, seed, epoch, 5) for seed in ((0, 0), (0, 1), (1, 0)) for epoch in (0, 1)
    ]
    for one in range(len(orders)):
        for other in range(one):
            assert not np.array_equal(orders[one], orders[other])


def test_a_window_bounds_how_many_shards_are_open_at_a_time() -> None:
    shard_of = np.repeat(np.arange(len(SIZES)), SIZES)
    shards = shard_of[epoch_order(SIZES, (0,), 0, 2)]
    seen: list[set[int]] = []
    while len(shards):
        window = set(shards[:1])
        stop = 1
        while stop < len(shards) and len(window | {shards[stop]}) <= 2:
            window.add(shards[stop])
            stop += 1
        seen.append(window)
        shards = shards[stop:]
    assert len(seen) == 3
    assert sum(len(window) for window in seen) == len(SIZES)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_parts_of_all_ranks_are_the_global_batch_in_order(world_size: int) -> None:
    alone = _plans(9)
    ranks = [_plans(9, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, plan in enumerate(alone):
        for task in ("segmentation", "image_text"):
            joined = [draw for plans in ranks for draw in plans[step].draws[task]]
            assert tuple(joined) == plan.draws[task]
        assert all(plans[step].state == plan.state for plans in ranks)


def test_samples_wrap_around_into_the_next_epoch_without_a_gap() -> None:
    draws = [draw for plan in _plans(12) for draw in plan.draws["segmentation"]]
    first = [draw.sample for draw in draws if draw.epoch == 0]
    assert sorted(first) == list(range(sum(SIZES)))
    assert [draw.epoch for draw in draws] == [i // sum(SIZES) for i in range(48)]


def test_a_batch_larger_than_the_data_set_holds_several_epochs() -> None:
    (plan,) = _plans(1, mixtures=(_mixture("segmentation", 8, (2, 1)),))
    assert [draw.epoch for draw in plan.draws["segmentation"]] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_going_on_from_a_saved_state_gives_the_same_plans() -> None:
    plans = _plans(12)
    state = json.loads(json.dumps(plans[6].state))
    assert [plan.draws for plan in _plans(5, state=state)] == [plan.draws for plan in plans[7:]]
    assert _plans(5, state=state)[-1].state == plans[-1].state
    assert len(json.dumps(state)) < 400


def test_sources_are_drawn_by_weight_and_each_keeps_its_own_place() -> None:
    mixture = _mixture("segmentation", 2, (9,), (9,), weights=(3.0, 1.0))
    plans = _plans(400, mixtures=(mixture,))
    chosen = [plan.draws["segmentation"][0].source for plan in plans]
    assert all(len({draw.source for draw in plan.draws["segmentation"]}) == 1 for plan in plans)
    assert 0.65 < np.mean(np.array(chosen) == 0) < 0.85
    for source in (0, 1):
        draws = [d for plan in plans for d in plan.draws["segmentation"] if d.source == source]
        assert sorted(draw.sample for draw in draws[:9]) == list(range(9))


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"data.segmentation.batch_size must be a multiple .*\(3\)"
    ):
        _plans(1, world_size=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed must be 3, as the configured data has it; got 4"),
        ({"version": 0}, "version must be 1"),
        ({"num_samples": {"segmentation": [22]}}, "num_samples must be"),
    ],
)
def test_a_state_of_another_run_is_refused(change: dict, message: str) -> None:
    state = {**_plans(1)[0].state, **change}
    with pytest.raises(DataError, match=message):
        _plans(1, state=state)
