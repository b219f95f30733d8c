"""Which share of the time became steps that count."""

import pytest

from pipelines.goodput import goodput

START, END = 1000.0, 1100.0
EVENTS = [
    {"event": "start", "time": START},
    {"event": "checkpoint", "time": START + 40},
    {"event": "start", "time": START + 60},
    {"event": "finished", "time": END},
]


def test_kept_steps_count_and_left_out_ones_do_not() -> None:
    rows = [
        {"step": 1},
        {"step": 2, "left_out": 1},
        {"step": 3, "seconds_per_step": 5.0},
        # of the second start
        {"step": 4, "seconds_per_step": 20.0},
        {"step": 5, "seconds_per_step": 7.0, "left_out": 1},
        {"step": 6},
    ]
    found = goodput(EVENTS, rows, until=END)
    assert found is not None
    # two steps of the first three, one of 20 s; the last has no time yet
    assert found.kept_seconds == 2 * 5.0 + 20.0
    assert (found.wall_seconds, found.num_starts) == (100.0, 2)
    assert found.share == pytest.approx(0.3)


def test_a_run_that_never_started_has_none() -> None:
    assert goodput([], [], until=END) is None


def test_clocks_that_disagree_do_not_make_more_than_everything() -> None:
    found = goodput(EVENTS, [{"step": 1, "seconds_per_step": 500.0}], until=END)
    assert found is not None
    assert found.share == 1.0
