"""Processes that are killed at random, alone and in pairs: the curve must not show it."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.tracking.jsonl import read_events

pytestmark = pytest.mark.dist

Curve = Callable[[Path], dict[int, dict[str, float]]]
Start = Callable[..., subprocess.Popen]
LONG = ("--set", "steps=40")
SLOW = {"TINY_DELAY": "0.05"}
PATIENCE_SECONDS = 120.0


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    path = folder / "metrics.jsonl"
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0]
        lines = path.read_text().splitlines() if path.is_file() else []
        steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
        if steps and max(steps) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} did not come")


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finish(process: subprocess.Popen) -> int:
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    return process.returncode


def processes_of_ranks(process: subprocess.Popen) -> Iterator[tuple[int, psutil.Process]]:
    for child in psutil.Process(process.pid).children(recursive=True):
        rank = child.environ().get("RANK")
        if rank is not None:
            yield int(rank), child


def test_process_killed_twice_continues_exactly(
    tmp_path: Path, start_tiny: Start, train_tiny: Callable[..., int], curve: Curve
) -> None:
    train_tiny(tmp_path / "whole", "steps=40")
    seed = random.randrange(10**6)
    steps = sorted(random.Random(seed).sample(range(1, 34), 2))
    for step in steps:
        process = start_tiny(tmp_path / "cut", *LONG, environment=SLOW)
        wait_for_step(tmp_path / "cut", step, process)
        kill(process)
    finish(start_tiny(tmp_path / "cut", *LONG))
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole"), f"killed at steps {steps}"


def test_two_ranks_stopped_through_one_and_then_killed_continue_exactly(
    tmp_path: Path, start_tiny: Start, curve: Curve
) -> None:
    finish(start_tiny(tmp_path / "whole", *LONG, ranks=2))

    process = start_tiny(tmp_path / "cut", *LONG, ranks=2, environment=SLOW)
    wait_for_step(tmp_path / "cut", 5, process)
    ranks = dict(processes_of_ranks(process))
    ranks[1].send_signal(signal.SIGUSR2)
    # torchrun reports any failure as 1; each rank's own code is in its text
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert "exitcode  : 75" in output
    stopped = [e for e in read_events(tmp_path / "cut") if e["event"] == "stopped"]
    assert [event["signal"] for event in stopped] == ["SIGUSR2"]

    step = random.randrange(stopped[0]["step"] + 1, 34)
    process = start_tiny(tmp_path / "cut", *LONG, ranks=2, environment=SLOW)
    wait_for_step(tmp_path / "cut", step, process)
    for _, rank in processes_of_ranks(process):
        rank.kill()
    process.communicate()

    finish(start_tiny(tmp_path / "cut", *LONG, ranks=2))
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole"), f"killed at step {step}"


def test_bad_number_on_one_rank_stops_both_with_the_keys_of_both(
    tmp_path: Path, start_tiny: Start
) -> None:
    poisoned = {"TINY_POISON_STEP": "5"}
    process = start_tiny(tmp_path, "--set", "watch.max_skipped=0", ranks=2, environment=poisoned)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert "exitcode  : 4" in output
    failed = read_events(tmp_path)[-1]
    assert failed["event"] == "failed"
    assert "step 6" in failed["error"]
    assert "shard5/0-0, shard5/0-1, shard5/1-0, shard5/1-1" in failed["error"]
