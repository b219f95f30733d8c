"""Checkpoints in the background: copies, what is kept, and disks that do not take them."""

import errno
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pipelines.config import CheckpointConfig
from pipelines.engine import checkpoint_writer
from pipelines.engine.checkpoint_files import CheckpointFolders, read_tensors, write_tensors
from pipelines.engine.checkpoint_writer import Snapshot, Writer
from pipelines.errors import CheckpointError, ExitCode
from pipelines.tracking.jsonl import read_events

Curve = Callable[[Path], dict[int, dict[str, float]]]
Train = Callable[..., int]


def steps_of(root: Path) -> list[int]:
    return sorted(int(folder.name[5:]) for folder in root.glob("step_*"))


def save(folders: CheckpointFolders, step: int, **metrics: float) -> None:
    folders.begin(step)
    facts = json.dumps({"step": step, "metrics": metrics})
    (folders.writing(step) / "state.json").write_text(facts)
    folders.commit(step)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep_last": 2}, [50, 60]),
        ({"keep_last": 1, "keep_every_steps": 20}, [20, 40, 60]),
        ({"keep_last": 1, "keep_best": "loss"}, [30, 60]),
        ({"keep_last": 1, "keep_best": "loss", "best_is": "highest"}, [10, 60]),
        ({"keep_last": 1, "keep_best": "loss", "keep_every_steps": 40}, [30, 40, 60]),
    ],
)
def test_each_rule_keeps_its_own(tmp_path: Path, settings: dict[str, Any], kept: list[int]) -> None:
    folders = CheckpointFolders(tmp_path, CheckpointConfig(every_steps=10, **settings))
    for step, loss in zip(range(10, 70, 10), (9.0, 5.0, 2.0, 4.0, 2.5, 3.0), strict=True):
        save(folders, step, loss=loss)
    assert steps_of(tmp_path) == kept
    assert (tmp_path / "latest").resolve().name == "step_00000060"
    if "keep_best" in settings:
        best = (tmp_path / "best").resolve().name
        assert best == ("step_00000010" if settings.get("best_is") else "step_00000030")


def test_metric_that_nobody_writes_keeps_the_newest_only(tmp_path: Path) -> None:
    folders = CheckpointFolders(tmp_path, CheckpointConfig(keep_last=1, keep_best="los"))
    save(folders, 1, loss=1.0)
    save(folders, 2, loss=2.0)
    assert steps_of(tmp_path) == [2]
    assert not (tmp_path / "best").exists()


def test_run_keeps_the_checkpoint_of_its_lowest_loss(tmp_path: Path, train_tiny: Train) -> None:
    settings = ("checkpoint.keep_last=1", "checkpoint.keep_best=loss", "checkpoint.every_steps=1")
    train_tiny(tmp_path, *settings)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    best = min(rows, key=lambda row: row["loss"])["step"]
    root = tmp_path / "checkpoints"
    assert (root / "best").resolve().name == f"step_{best:08d}"
    assert set(steps_of(root)) == {best, 12}


def test_writing_goes_on_beside_the_training(
    tmp_path: Path, train_tiny: Train, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint is held back until three further steps have been taken."""
    may_write, num_seen = threading.Event(), []

    def held_back(path: Path, tensors: Any) -> None:
        assert may_write.wait(timeout=30)
        write_tensors(path, tensors)

    def stream(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, item in enumerate(tiny.tiny_stream(*arguments, **options), 1):
            num_seen.append(number)
            if number == 6:
                assert not list((tmp_path / "late" / "checkpoints").glob("step_*"))
                may_write.set()
            yield item

    train_tiny(tmp_path / "plain", "checkpoint.asynchronous=false", "checkpoint.keep_last=9")
    monkeypatch.setattr(checkpoint_writer, "write_tensors", held_back)
    train_tiny(tmp_path / "late", "checkpoint.keep_last=9", make_stream=stream)
    assert num_seen[-1] == 12
    for step in (3, 6, 9, 12):
        # written steps later, from a copy of its own step
        for name in ("model", "ema", "optimizer", "generators_00000"):
            place = f"checkpoints/step_{step:08d}/{name}.safetensors"
            first, second = (read_tensors(tmp_path / run / place) for run in ("plain", "late"))
            assert all(torch.equal(first[key], second[key]) for key in first)
    saved = [e["step"] for e in read_events(tmp_path / "late") if e["event"] == "checkpoint"]
    assert saved == [3, 6, 9, 12]


def test_state_has_all_that_a_resumed_run_needs(tmp_path: Path, train_tiny: Train) -> None:
    train_tiny(tmp_path, "parallel.precision=fp16", "parallel.initial_loss_scale=512", "steps=4")
    latest = tmp_path / "checkpoints" / "latest"
    facts = json.loads((latest / "state.json").read_text())
    assert facts["step"] == 4
    assert facts["data"] == {"index": 4}
    assert facts["loss_scale"] == {"value": 512.0, "num_good_steps": 4}
    assert facts["world_size"] == 1
    moments = read_tensors(latest / "optimizer.safetensors")
    assert moments["step"].item() == 4
    assert {name.split("/")[0] for name in moments} == {"step", "exp_avg", "exp_avg_sq"}
    assert (latest / "ema.safetensors").is_file()
    assert set(read_tensors(latest / "generators_00000.safetensors")) == {"cpu"}
    assert set(json.loads((latest / "generators_00000.json").read_text())) == {"python", "numpy"}
    # of services that follow the run: beside the checkpoints, because it outlives them
    assert (tmp_path / "run_id").read_text()


def test_loss_scale_goes_on_where_it_was(tmp_path: Path, train_tiny: Train, curve: Curve) -> None:
    # grows every second step; counted from a checkpoint alone, step 4 would not double it
    half = (
        "parallel.precision=fp16",
        "parallel.initial_loss_scale=4",
        "parallel.loss_scale_window=2",
    )

    def scales(folder: Path) -> list[float]:
        return [json.loads(line)["loss_scale"] for line in (folder / "metrics.jsonl").open()]

    train_tiny(tmp_path / "whole", *half)
    train_tiny(tmp_path / "cut", *half)
    (tmp_path / "cut" / "checkpoints" / "step_00000012" / "COMPLETE").unlink()
    train_tiny(tmp_path / "cut", *half)
    assert scales(tmp_path / "cut") == scales(tmp_path / "whole")
    assert scales(tmp_path / "whole")[:5] == [4.0, 4.0, 8.0, 8.0, 16.0]
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def failing(number: int, *, after: int) -> Callable[..., None]:
    """`write_tensors` on a disk that takes so many files and then fails."""
    written = []

    def write(path: Path, tensors: Any) -> None:
        if len(written) >= after:
            raise OSError(number, os.strerror(number), str(path))
        written.append(path)
        write_tensors(path, tensors)

    return write


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "The disk is full: free space"),
        (errno.EROFS, "The disk can only be read"),
        (errno.EDQUOT, "The quota is used up"),
    ],
)
def test_disk_that_fails_ends_the_run_which_then_goes_on_exactly(
    tmp_path: Path,
    train_tiny: Train,
    curve: Curve,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    advice: str,
) -> None:
    train_tiny(tmp_path / "whole")
    with monkeypatch.context() as patch:
        # a checkpoint has four files of tensors: the first is complete, the second is not
        patch.setattr(checkpoint_writer, "write_tensors", failing(number, after=6))
        with pytest.raises(CheckpointError, match=rf"step 6 must be written to .* {advice}"):
            train_tiny(tmp_path / "cut")
    root = tmp_path / "cut" / "checkpoints"
    assert steps_of(root) == [3]
    assert not list(root.glob(".writing_*"))
    assert read_events(tmp_path / "cut")[-1]["event"] == "failed"
    assert train_tiny(tmp_path / "cut") == ExitCode.FINISHED
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_folder_that_vanished_is_not_made_again(
    tmp_path: Path, train_tiny: Train, tiny: ModuleType
) -> None:
    """It may be the mount point of a disk that is gone."""
    aside = tmp_path / "aside"

    def stream(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, item in enumerate(tiny.tiny_stream(*arguments, **options), 1):
            if number == 8:
                (tmp_path / "run" / "checkpoints").rename(aside)
            yield item

    with pytest.raises(CheckpointError, match=r"step 9 must be written .*The folder is gone"):
        train_tiny(tmp_path / "run", "checkpoint.asynchronous=false", make_stream=stream)
    assert not (tmp_path / "run" / "checkpoints").exists()
    aside.rename(tmp_path / "run" / "checkpoints")
    assert train_tiny(tmp_path / "run") == ExitCode.FINISHED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB, where the system lets us have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount here: {error}")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_that_is_really_full_is_named(small_disk: Path) -> None:
    folders = CheckpointFolders(small_disk)
    few, many = ({"w": torch.zeros(count)} for count in (100, 100_000))
    for step, tensors in ((1, few), (2, many)):
        snapshot = Snapshot(tensors={"model.safetensors": tensors}, texts={"state.json": "{}"})
        writer = Writer(folders, step, snapshot, began=0.0)
        if step == 1:
            assert writer.result().folder.name == "step_00000001"
    with pytest.raises(CheckpointError, match=r"step 2 must be written .*The disk is full"):
        writer.result()
    assert not writer.is_complete
    assert folders.newest_complete() == (small_disk / "step_00000001", ())
    assert shutil.disk_usage(small_disk).free > 0
