from pathlib import Path

import pytest

from pipelines.config import PreemptionConfig
from pipelines.engine.wall_time import JobLimits, WallTime, estimate_save_seconds, read_limits
from pipelines.errors import ConfigError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_limits_come_from_the_environment() -> None:
    assert read_limits({}) == JobLimits()
    given = {"SLURM_JOB_END_TIME": "1700000000", "XDEC_KILL_WAIT": "30"}
    assert read_limits(given) == JobLimits(end=1.7e9, kill_wait=30.0)
    with pytest.raises(
        ConfigError, match="SLURM_JOB_END_TIME must be a number of seconds; got 'x'"
    ):
        read_limits({"SLURM_JOB_END_TIME": "x"})


def test_run_stops_while_a_step_and_two_saves_still_fit() -> None:
    clock = Clock()
    wall_time = WallTime(JobLimits(end=1100.0), margin_seconds=10.0, save_seconds=5.0, clock=clock)
    # 10 s of margin and twice 5 s of save
    assert wall_time.needed_seconds == 20.0
    wall_time.saw_step()
    clock.now += 7
    wall_time.saw_step()
    assert wall_time.needed_seconds == 27.0
    clock.now = 1072.9
    assert not wall_time.is_nearly_over()
    clock.now = 1073.0
    assert wall_time.is_nearly_over()


def test_a_save_is_no_step_and_the_slowest_one_counts() -> None:
    clock = Clock()
    wall_time = WallTime(JobLimits(end=2000.0), margin_seconds=0.0, clock=clock)
    wall_time.saw_step()
    clock.now += 40
    wall_time.saw_save(40.0)
    wall_time.saw_save(3.0)
    clock.now += 1
    wall_time.saw_step()
    clock.now += 2
    wall_time.saw_step()
    assert wall_time.needed_seconds == 2 * 40.0 + 2


def test_unknown_end_never_stops_a_run() -> None:
    wall_time = WallTime(JobLimits(), margin_seconds=1e9)
    assert wall_time.seconds_left() is None
    assert not wall_time.is_nearly_over()
    assert wall_time.complaints() == []


def test_too_short_times_are_named() -> None:
    limits = JobLimits(end=1050.0, kill_wait=30.0)
    wall_time = WallTime(limits, margin_seconds=60.0, save_seconds=31.0, clock=Clock())
    short, kill = wall_time.complaints()
    assert "50 s are left for a run that needs 122 s to stop" in short
    assert "Ask for more with --time" in short
    assert "a save takes about 31.0 s, but this cluster kills 30 s after" in kill
    enough = WallTime(JobLimits(end=9e9, kill_wait=32.0), margin_seconds=60.0, save_seconds=31.0)
    assert enough.complaints() == []


def test_estimate_grows_with_the_size_and_leaves_nothing(tmp_path: Path) -> None:
    assert estimate_save_seconds(tmp_path, 10 * 2**30) > 10 * estimate_save_seconds(tmp_path, 2**20)
    assert estimate_save_seconds(tmp_path, 0) >= 0
    assert not list(tmp_path.iterdir())


def test_negative_times_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"preemption.margin_seconds must be >= 0; got 600 and -1"
    ):
        PreemptionConfig(margin_seconds=-1)
