"""One run, killed again and again at random instants, many of them inside a save."""

import collections
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.engine.checkpoint_files import read_tensors, verify
from pipelines.tracking.jsonl import read_events

pytestmark = pytest.mark.dist
REPOSITORY = Path(__file__).resolve().parents[3]
Curve = Callable[[Path], dict[int, dict[str, float]]]
# a checkpoint every second step: most of the time of these runs is spent on writing
SETTINGS = (
    *("steps=60", "checkpoint.every_steps=2", "tracking.log_every=1"),
    "parallel.num_threads=1",
)
LONGEST_LIFE_SECONDS = 0.3


class Server:
    """Starts runs in forks of one process that has everything imported."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("kill_server.py")), *SETTINGS],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}",
                "OMP_NUM_THREADS": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"

    def run(self, folder: Path, *, since: str = "never", kill_after: float = 0.0) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{since} {kill_after} {folder}\n")
        self._process.stdin.flush()
        return int(self._answer())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def kill_again_and_again(
    server: Server, root: Path, *, num_kills: int, seed: int
) -> collections.Counter[str]:
    """Counts of what the kills hit, after `num_kills` of them; every run has ended at last."""
    draws, hits, index = random.Random(seed), collections.Counter[str](), 0
    while hits["kills"] < num_kills:
        folder = root / f"cut{index}"
        # also while it starts and restores, but mostly between its steps and saves
        since = "start" if draws.random() < 0.25 else "batch"
        code = server.run(folder, since=since, kill_after=draws.uniform(0, LONGEST_LIFE_SECONDS))
        if code == 0:
            # ended before its time; the next run is killed instead
            index += 1
            continue
        assert code == -9, folder.with_suffix(".log").read_text()
        hits["kills"] += 1
        checkpoints = folder / "checkpoints"
        hits["inside a save"] += any(checkpoints.glob(".writing_*"))
        for complete in checkpoints.glob("step_*"):
            verify(complete)
    assert server.run(root / f"cut{index}") == 0
    return hits


def assert_equal_runs(whole: Path, cut: Path, curve: Curve, *, seed: int) -> None:
    assert curve(cut) == curve(whole), f"seed {seed}"
    for name in ("model", "ema", "optimizer", "generators_00000"):
        first = read_tensors(whole / "checkpoints" / "latest" / f"{name}.safetensors")
        second = read_tensors(cut / "checkpoints" / "latest" / f"{name}.safetensors")
        assert first.keys() == second.keys()
        assert all((first[key] == second[key]).all() for key in first), f"seed {seed}"
    # a start without a checkpoint is allowed only before there was one
    events = [event["event"] for event in read_events(cut)]
    first_save = events.index("checkpoint")
    later = events[first_save:]
    assert later.count("start") == later.count("resume"), f"seed {seed}"
    assert "damaged_checkpoint" not in events


@pytest.mark.parametrize("num_kills", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_run_killed_at_random_instants_is_bit_for_bit_the_uninterrupted_one(
    tmp_path: Path, server: Server, curve: Curve, num_kills: int
) -> None:
    assert server.run(tmp_path / "whole") == 0
    seed = random.randrange(10**6)
    hits = kill_again_and_again(server, tmp_path, num_kills=num_kills, seed=seed)
    print(f"{dict(hits)}, seed {seed}")
    for cut in tmp_path.glob("cut*"):
        if cut.is_dir():
            assert_equal_runs(tmp_path / "whole", cut, curve, seed=seed)
    if num_kills >= 60:
        assert hits["inside a save"] >= 5, f"seed {seed}: {dict(hits)}"
