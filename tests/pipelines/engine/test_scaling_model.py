"""The arithmetic of a step elsewhere, against numbers that are worked out by hand."""

import dataclasses

import pytest

from pipelines.engine.scaling_model import (
    GPUS,
    Link,
    Machine,
    Work,
    communication_seconds,
    predict,
    ring_seconds,
    state_bytes,
)
from pipelines.engine.scaling_table import COUNTS, count_table, growth_table, stage_table
from pipelines.errors import ConfigError

MACHINE = Machine(
    name="test",
    flops=100.0,
    memory_gib=1.0,
    memory_bandwidth=3200.0,
    overhead=0.5,
    ranks_per_node=4,
    local=Link(bandwidth=40.0, latency=0.01),
    remote=Link(bandwidth=20.0, latency=0.1),
)
# 400 bytes of weights
WORK = Work(num_values=100, forward_flops=600.0, activation_bytes=80.0, batch_sizes=(8, 24))


def test_one_rank_computes_everything_and_talks_to_nobody() -> None:
    found = predict(WORK, MACHINE, num_ranks=1, zero_stage=0)
    # three passes of 600 operations; eight times four bytes of 100 values
    assert found.seconds == {
        "overhead": 0.5,
        "compute": 18.0,
        "communication": 0.0,
        "optimizer": 1.0,
    }
    assert found.images_per_second == pytest.approx(32 / 19.5)
    assert sum(found.bytes_kept.values()) == 4 * 400 + 80


def test_ring_moves_all_but_a_share_over_the_slowest_link() -> None:
    # three quarters of 400 bytes, and three latencies
    assert ring_seconds(400, MACHINE, 4) == pytest.approx(300 / 40 + 3 * 0.01)
    assert ring_seconds(400, MACHINE, 8) == pytest.approx(350 / 20 + 7 * 0.1)


@pytest.mark.parametrize(
    ("stage", "accumulation", "halves"),
    [(0, 3, 2), (1, 3, 2), (2, 1, 2), (2, 3, 4), (3, 1, 3), (3, 3, 9)],
)
def test_stages_scatter_and_gather_as_often_as_they_must(
    stage: int, accumulation: int, halves: int
) -> None:
    work = dataclasses.replace(WORK, accumulation=accumulation)
    seconds = communication_seconds(work, MACHINE, num_ranks=4, zero_stage=stage)
    assert seconds == pytest.approx(halves * ring_seconds(400, MACHINE, 4))


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, {"weights": 400, "gradients": 400, "moments": 800, "average": 400}),
        (1, {"weights": 400, "gradients": 400, "moments": 200, "average": 400}),
        (2, {"weights": 400, "gradients": 100, "moments": 200, "average": 400}),
        (3, {"weights": 100, "gradients": 100, "moments": 200, "average": 400}),
    ],
)
def test_each_stage_shards_one_part_more(stage: int, expected: dict[str, float]) -> None:
    assert state_bytes(100, num_ranks=4, zero_stage=stage, is_averaged=True) == expected
    alone = state_bytes(100, num_ranks=1, zero_stage=stage, is_averaged=False)
    assert sum(alone.values()) == 1600


def test_computing_blocks_again_costs_a_pass() -> None:
    again = dataclasses.replace(WORK, is_recomputed=True)
    seconds = predict(again, MACHINE, num_ranks=2, zero_stage=0).seconds
    assert seconds["compute"] == pytest.approx(4 * 600 / 2 / 100)


def test_more_ranks_divide_the_work_or_bring_their_own() -> None:
    shared = predict(WORK, MACHINE, num_ranks=8, zero_stage=2)
    assert shared.seconds["compute"] == pytest.approx(18.0 / 8)
    assert shared.bytes_kept["activations"] == 10.0
    grown = WORK.with_share_of(2, 8)
    assert (grown.forward_flops, grown.batch_sizes) == (2400.0, (32, 96))
    own = predict(grown, MACHINE, num_ranks=8, zero_stage=2)
    before = predict(WORK, MACHINE, num_ranks=2, zero_stage=2)
    assert own.seconds["compute"] == before.seconds["compute"]


def test_every_task_must_be_divisible() -> None:
    assert WORK.divides_among(8)
    # 24 images of one task could be divided, 8 of the other could not
    assert not WORK.divides_among(12)


@pytest.mark.parametrize(("ranks", "stage"), [(0, 1), (2, 4)])
def test_impossible_runs_are_refused(ranks: int, stage: int) -> None:
    with pytest.raises(ConfigError, match=f"got {ranks} ranks and stage {stage}"):
        predict(WORK, MACHINE, num_ranks=ranks, zero_stage=stage)


def test_tables_show_every_stage_and_every_number_of_ranks() -> None:
    stages = stage_table(WORK, MACHINE, num_ranks=4, num_steps=7200)
    assert list(stages.columns[0].cells) == ["0", "1", "2", "3"]
    step = predict(WORK, MACHINE, num_ranks=4, zero_stage=0).step_seconds
    assert next(iter(stages.columns[-1].cells)) == f"{2 * step:,.1f}"
    tight = dataclasses.replace(MACHINE, memory_gib=1000 / 2**30)
    fits = stage_table(WORK, tight, num_ranks=4, num_steps=1).columns[2].cells
    assert list(fits) == ["no", "no", "yes", "yes"]
    counts = count_table(WORK, MACHINE, zero_stage=0, num_steps=1)
    assert list(counts.columns[0].cells) == ["1", "2", "4", "8"]
    grown = growth_table(WORK, MACHINE, num_ranks=4, zero_stage=0, num_steps=1)
    assert list(grown.columns[0].cells) == [str(count) for count in COUNTS]
    assert COUNTS[-1] == 256


def test_known_gpus_stay_below_their_peaks() -> None:
    peaks = {"v100": 125e12, "a100": 312e12, "h100": 989e12}
    assert GPUS.keys() == peaks.keys()
    assert all(GPUS[name].flops < peak / 2 for name, peak in peaks.items())
