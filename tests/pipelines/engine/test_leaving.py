"""Runs in a job with limits, and signals that come while a checkpoint is written."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.engine.checkpoint_files import CheckpointFolders
from pipelines.engine.signals import StopFlag
from pipelines.tracking.jsonl import read_events

Train = Callable[..., int]
Curve = Callable[[Path], dict[int, dict[str, float]]]
NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


@pytest.fixture
def stop() -> Iterator[StopFlag]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    flag = StopFlag().install()
    yield flag
    flag.forced_exit.give_up()
    for number, handler in before.items():
        signal.signal(number, handler)


def events_of(folder: Path, kind: str) -> list[dict]:
    return [event for event in read_events(folder) if event["event"] == kind]


def test_run_stops_before_the_job_ends_and_goes_on_exactly(
    tmp_path: Path, train_tiny: Train, curve: Curve, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tiny(tmp_path / "whole")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 10))
    assert train_tiny(tmp_path / "cut") == 75
    stopped = events_of(tmp_path / "cut", "stopped")
    assert [(event["signal"], event["step"]) for event in stopped] == [("wall time", 1)]
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 1000))
    assert train_tiny(tmp_path / "cut") == 0
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_what_is_too_short_is_an_event(
    tmp_path: Path, train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 10))
    monkeypatch.setenv("XDEC_KILL_WAIT", "30")
    train_tiny(tmp_path)
    (limits,) = events_of(tmp_path, "limits")
    assert limits["kill_wait"] == 30.0
    assert 0 < limits["seconds_left"] <= 10
    # of so small a model it may be rounded to nothing
    assert 0 <= limits["save_seconds"] < 10
    (short,) = events_of(tmp_path, "too_short")
    assert "lower preemption.margin_seconds" in short["message"]


def test_without_limits_a_run_says_nothing(tmp_path: Path, train_tiny: Train) -> None:
    train_tiny(tmp_path)
    assert not events_of(tmp_path, "limits")
    assert not events_of(tmp_path, "too_short")


def test_signals_while_saving_lose_nothing(
    tmp_path: Path,
    train_tiny: Train,
    curve: Curve,
    stop: StopFlag,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_tiny(tmp_path / "whole")
    commit = CheckpointFolders.commit

    def interrupted(folders: CheckpointFolders, step: int) -> Path:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return commit(folders, step)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolders, "commit", interrupted)
        assert train_tiny(tmp_path / "cut", stop=stop) == 75
    (stopped,) = events_of(tmp_path / "cut", "stopped")
    assert (stopped["signal"], stopped["rank"]) == ("SIGUSR2", 0)
    assert stopped["num_signals"] >= 3
    assert train_tiny(tmp_path / "cut") == 0
    assert events_of(tmp_path / "cut", "resume")[0]["step"] == stopped["step"]
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_grace_is_armed_from_the_configuration(
    tmp_path: Path, train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, end = StopFlag(), time.time() + 1000
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(end))
    train_tiny(tmp_path / "a", "preemption.grace_seconds=7", stop=flag)
    assert flag.forced_exit.seconds == 7.0
    assert flag.forced_exit.latest == pytest.approx(end - 30, abs=1e-3)
    train_tiny(tmp_path / "b", "preemption.grace_seconds=0", stop=flag)
    assert flag.forced_exit.seconds is None
