"""Signs of life, and what a rank leaves behind when it stalls."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import ParallelConfig, WatchConfig
from pipelines.engine.heartbeat import HeartbeatFile, read_heartbeats
from pipelines.engine.watchdog import Watchdog, stall_hint
from pipelines.errors import ExitCode
from pipelines.tracking.jsonl import read_events

QUICK = WatchConfig(
    stall_factor=2, stall_min_seconds=0.2, stall_first_seconds=60, heartbeat_seconds=0.05
)
PATIENCE_SECONDS = 20


def wait_until(is_so: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def told() -> list[tuple[str, Mapping[str, Any]]]:
    return []


@pytest.fixture
def watchdog(tmp_path: Path, told: list[Any]) -> Watchdog:
    (tmp_path / "logs").mkdir()
    return Watchdog(
        tmp_path,
        QUICK,
        rank=3,
        restart=1,
        step=40,
        loader_state=lambda: {"drawn": [12, 7]},
        tell=lambda kind, facts: told.append((kind, facts)),
    )


def hold_the_line(seconds: float) -> None:
    time.sleep(seconds)


def test_a_stalled_step_leaves_stacks_and_loader_state_once(
    tmp_path: Path, watchdog: Watchdog, told: list[Any]
) -> None:
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with watchdog:
        watchdog.beat(41)
        hold_the_line(0.6)
        wait_until(lambda: told)
        watchdog.beat(42)
        wait_until(lambda: len(told) > 1)
    worker.communicate(b"\n")
    assert [kind for kind, _ in told] == ["stall", "stall_over"]
    facts = told[0][1]
    assert (facts["step"], facts["rank"], facts["limit"]) == (42, 3, 0.2)
    assert facts["seconds"] >= 0.2
    text = (tmp_path / "logs" / facts["stacks"]).read_text()
    assert facts["stacks"] == "stall.start001.rank00003.step00000042.txt"
    assert "hold_the_line" in text
    assert '{"drawn": [12, 7]}' in text
    assert f"  {worker.pid} " in text


def test_a_stall_of_sharded_weights_says_what_they_may_wait_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sharded = ParallelConfig(backend="deepspeed", zero_stage=3)
    (tmp_path / "logs").mkdir()
    watchdog = Watchdog(
        tmp_path,
        QUICK,
        rank=0,
        restart=0,
        step=0,
        loader_state=lambda: None,
        hint=stall_hint(sharded, num_ranks=2),
    )
    with watchdog:
        watchdog.beat(1)
        wait_until(lambda: list((tmp_path / "logs").glob("stall.*")))
    (path,) = (tmp_path / "logs").glob("stall.*.txt")
    for text in (path.read_text(), caplog.text):
        assert "Under parallel.zero_stage=3 every rank must run the same modules" in text
    others = (ParallelConfig(), ParallelConfig(backend="deepspeed", zero_stage=2))
    assert [stall_hint(each, num_ranks=2) for each in others] == ["", ""]
    assert stall_hint(sharded, num_ranks=1) == ""


def test_a_full_disk_does_not_end_the_watch(
    watchdog: Watchdog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(watchdog, "_tell", refuse)
    monkeypatch.setattr(watchdog, "_write_stall", refuse)
    monkeypatch.setattr(watchdog._file, "write", refuse)
    with watchdog:
        watchdog.beat(41)
        wait_until(lambda: "no event stall: No space" in caplog.text)
        assert watchdog._thread.is_alive()
    assert "no stacks in" in caplog.text
    assert "no heartbeat" in caplog.text


def test_a_step_may_take_a_multiple_of_the_median(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watchdog: Watchdog
) -> None:
    assert watchdog.limit_seconds == 60
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watchdog.beat(41)
    for step, seconds in enumerate((3.0, 90.0, 4.0, 2.5), 42):
        now += seconds
        watchdog.beat(step)
    # the median of 0, 2.5, 3, 4 and 90 or so
    assert watchdog.limit_seconds == pytest.approx(6.0, abs=0.01)


def test_the_heartbeat_says_who_lives_and_who_moves(tmp_path: Path, watchdog: Watchdog) -> None:
    with watchdog:
        watchdog.beat(41)
        wait_until(lambda: read_heartbeats(tmp_path) and read_heartbeats(tmp_path)[0].step == 41)
        wait_until(lambda: read_heartbeats(tmp_path)[0].stalled_seconds > 0.2)
    (found,) = read_heartbeats(tmp_path)
    assert (found.rank, found.restart, found.step) == (3, 1, 41)
    assert (found.pid, found.host) == (os.getpid(), socket.gethostname())
    assert found.time - found.step_time > 0.2
    # a reader never sees half a file
    assert [path.name for path in (tmp_path / "heartbeat").iterdir()] == ["rank00003.json"]


def test_ranks_of_earlier_starts_are_no_longer_there(tmp_path: Path) -> None:
    for rank, restart in ((0, 2), (1, 1)):
        HeartbeatFile(tmp_path, rank=rank, restart=restart).write(
            step=5, step_time=1.0, median_seconds=0.5, stalled_seconds=0.0
        )
    assert [found.rank for found in read_heartbeats(tmp_path)] == [0]


def test_without_heartbeats_there_is_no_thread(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    config = WatchConfig(heartbeat_seconds=0)
    made = Watchdog(tmp_path, config, rank=0, restart=0, step=0, loader_state=dict)
    with made:
        made.beat(1)
    assert read_heartbeats(tmp_path) == []


def test_a_hanging_run_leaves_with_the_code_of_a_hang(
    tmp_path: Path, start_tiny: Callable[..., subprocess.Popen]
) -> None:
    settings = ("watch.on_stall=stop", "watch.stall_first_seconds=1", "watch.heartbeat_seconds=0.2")
    process = start_tiny(
        tmp_path,
        *(word for setting in settings for word in ("--set", setting)),
        environment={"TINY_DELAY": "600"},
    )
    output, _ = process.communicate(timeout=90)
    assert process.returncode == ExitCode.HANG, output
    assert "watchdog: step 1 has taken" in output
    (event,) = (each for each in read_events(tmp_path) if each["event"] == "stall")
    assert (event["step"], event["is_stopping"]) == (1, True)
    assert "tiny_stream" in (tmp_path / "logs" / event["stacks"]).read_text()
    heartbeat = json.loads((tmp_path / "heartbeat" / "rank00000.json").read_text())
    assert heartbeat["step"] == 0
