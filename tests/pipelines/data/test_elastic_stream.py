"""A run that is killed again and again, and goes on with other ranks and workers each time.

Ranks are real processes with loader processes of their own. Each writes the keys and the state of
every step; all are killed in the middle of their work, and the next ones go on from a step that all
ranks had finished, as from a checkpoint.

    killed        v                  v                    v
    1 x 0  |-------|      2 x 3 |-------|      4 x 1 |-------|
    saved      ^----------->        ^----------->        ^ ...
"""

import json
import multiprocessing
import os
import signal
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.config import DataConfig, ImageTextDataConfig, SegmentationDataConfig
from pipelines.data.stream import build_stream

LAYOUTS = [(ranks, workers) for ranks in (1, 2, 4) for workers in (0, 1, 3)]
NUM_STEPS = 60
# steps that a life may keep; it may take some more before it is killed
LONGEST_LIFE = 6
PATIENCE = 60.0

Keys = list[list[str]]


def _config(shards: Path, num_workers: int) -> DataConfig:
    return DataConfig(
        segmentation=SegmentationDataConfig(shards=(str(shards),), size_hw=(16, 24), batch_size=4),
        image_text=ImageTextDataConfig(
            shards=(str(shards), str(shards)), weights=(1.0, 2.0), size_hw=(8, 12), batch_size=8
        ),
        num_workers=num_workers,
        shuffle_window=2,
    )


def _live(
    shards: Path, log: Path, rank: int, world_size: int, num_workers: int, state: dict | None
) -> None:
    """Write the keys and the state of each step until killed, or until the end of the run."""
    os.setsid()
    done = state["step"] if state else 0
    config = _config(shards, num_workers)
    stream = build_stream(config, rank=rank, world_size=world_size, seed=5, state=state)
    with log.open("w") as file:
        for batches, after in islice(stream, NUM_STEPS - done):
            keys = [list(batch.keys) for batch in batches]
            file.write(json.dumps({"keys": keys, "state": after}) + "\n")
            file.flush()
    stream.close()


def _finished(logs: list[Path]) -> list[list[dict]]:
    """The whole lines of each rank; a killed process may leave half a line."""
    return [
        [json.loads(line) for line in log.read_text().split("\n")[:-1]] if log.exists() else []
        for log in logs
    ]


def _kill_after(processes: list, logs: list[Path], num_steps: int) -> None:
    """Kill ranks and their workers when every rank has taken so many steps, or has ended."""
    began = time.monotonic()
    while any(process.is_alive() for process in processes):
        if min(len(steps) for steps in _finished(logs)) >= num_steps:
            break
        assert time.monotonic() - began < PATIENCE, "a rank hangs"
        time.sleep(0.01)
    for process in processes:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_survives_any_chain_of_kills_and_layouts(
    shards: Path, tmp_path: Path, seed: int
) -> None:
    whole = build_stream(_config(shards, 0), rank=0, world_size=1, seed=5)
    expected = [[list(batch.keys) for batch in batches] for batches, _ in islice(whole, NUM_STEPS)]
    rng = np.random.default_rng(seed)
    context = multiprocessing.get_context("fork")
    state, found, lives = None, [], 0
    layouts = [LAYOUTS[number] for _ in range(9) for number in rng.permutation(len(LAYOUTS))]
    while len(found) < NUM_STEPS:
        world_size, num_workers = layouts[lives]
        logs = [tmp_path / f"life{lives}.rank{rank}" for rank in range(world_size)]
        processes = [
            context.Process(target=_live, args=(shards, log, rank, world_size, num_workers, state))
            for rank, log in enumerate(logs)
        ]
        for process in processes:
            process.start()
        _kill_after(processes, logs, num_steps=int(rng.integers(2, LONGEST_LIFE + 1)))
        ranks = _finished(logs)
        common = min(len(steps) for steps in ranks)
        for step in range(common):
            assert all(steps[step]["state"] == ranks[0][step]["state"] for steps in ranks)
        # the checkpoint is older than the death
        saved = int(rng.integers(1, min(common, LONGEST_LIFE) + 1))
        found += [
            [[key for rank in ranks for key in rank[step]["keys"][task]] for task in (0, 1)]
            for step in range(saved)
        ]
        state = ranks[0][saved - 1]["state"]
        lives += 1
    assert found == expected
    assert lives >= len(LAYOUTS)


def test_every_epoch_of_a_killed_run_has_each_sample_once(shards: Path) -> None:
    stream = build_stream(_config(shards, 0), rank=0, world_size=1, seed=5)
    keys = [key for batches, _ in islice(stream, NUM_STEPS) for key in batches[0].keys]
    for first in range(0, len(keys) - 13, 13):
        assert len(set(keys[first : first + 13])) == 13
