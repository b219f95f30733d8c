"""Two starts of one run at the same time, as after the loss of a node that was not lost."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pipelines.engine import checkpoint_writer
from pipelines.engine.checkpoint_files import CheckpointFolders, read_tensors, verify, write_tensors
from pipelines.engine.checkpoint_writer import Snapshot, Writer
from pipelines.engine.fence import Fence
from pipelines.errors import ConfigError
from pipelines.tracking.jsonl import read_events, read_metrics
from tests.testing.waiting import wait_until


def test_newest_start_owns_the_folder(tmp_path: Path) -> None:
    older = Fence(tmp_path)
    older.check()
    newer = Fence(tmp_path)
    newer.check()
    with pytest.raises(ConfigError, match=r"belongs to a newer start of this run.*Start one job"):
        older.check()


def test_older_start_ends_without_writing_and_the_newer_one_is_not_disturbed(
    tmp_path: Path,
    tiny: ModuleType,
    train_tiny: Callable[..., int],
    curve: Callable[[Path], dict[int, dict[str, float]]],
) -> None:
    def overtaken(*places: Any, **named: Any) -> Iterator[Any]:
        for index, item in enumerate(tiny.tiny_stream(*places, **named)):
            if index == 7:
                # checkpoints are written beside the training
                wait_until((tmp_path / "run" / "checkpoints" / "step_00000006").is_dir, "step 6")
                assert train_tiny(tmp_path / "run") == 0
            yield item

    train_tiny(tmp_path / "whole")
    with pytest.raises(ConfigError, match="belongs to a newer start"):
        train_tiny(tmp_path / "run", make_stream=overtaken)
    # the older one had taken 7 steps and was about to write its eighth row
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert {row["restart"] for row in read_metrics(tmp_path / "run")[6:]} == {1}
    told = [(event["event"], event["restart"]) for event in read_events(tmp_path / "run")]
    assert told[-1] == ("failed", 0)
    assert ("finished", 1) in told


class HeldBack:
    """`write_tensors` that stops after the first file of each checkpoint until it is let go on."""

    def __init__(self) -> None:
        self.is_inside = {1.0: threading.Event(), 2.0: threading.Event()}
        self.may_go_on = {1.0: threading.Event(), 2.0: threading.Event()}

    def __call__(self, path: Path, tensors: Any) -> None:
        write_tensors(path, tensors)
        value = tensors["w"][0].item()
        self.is_inside[value].set()
        assert self.may_go_on[value].wait(timeout=60)


def write(root: Path, value: float) -> Writer:
    """Of one start of the run, which takes the folder over; the checkpoint of step 5."""
    folders = CheckpointFolders(root, check=Fence(root.parent).check)
    tensors = {name: {"w": torch.full((2,), value)} for name in ("a.safetensors", "b.safetensors")}
    return Writer(folders, 5, Snapshot(tensors=tensors, texts={"state.json": "{}"}), began=0.0)


def test_a_start_that_still_writes_cannot_disturb_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, held_back = tmp_path / "checkpoints", HeldBack()
    root.mkdir()
    monkeypatch.setattr(checkpoint_writer, "write_tensors", held_back)
    older = write(root, 1.0)
    assert held_back.is_inside[1.0].wait(timeout=60)
    # the same step, while the older start is in the middle of its files
    newer = write(root, 2.0)
    assert held_back.is_inside[2.0].wait(timeout=60)
    held_back.may_go_on[1.0].set()
    with pytest.raises(ConfigError, match="belongs to a newer start of this run"):
        older.result()
    held_back.may_go_on[2.0].set()
    folder = newer.result().folder
    verify(folder)
    for name in ("a", "b"):
        assert read_tensors(folder / f"{name}.safetensors")["w"].tolist() == [2.0, 2.0]
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step_00000005"]


def test_a_start_that_is_overtaken_after_its_files_does_not_commit_them(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    older = CheckpointFolders(root, check=Fence(tmp_path).check)
    older.begin(5)
    write_tensors(older.writing(5) / "a.safetensors", {"w": torch.ones(2)})
    Fence(tmp_path)
    with pytest.raises(ConfigError, match="belongs to a newer start"):
        older.commit(5)
    assert not list(root.glob("step_*"))
    with pytest.raises(ConfigError, match="belongs to a newer start"):
        older.begin(6)


def test_a_checkpoint_that_slipped_through_is_set_aside(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for value in (1.0, 2.0):
        folders = CheckpointFolders(root)
        folders.begin(5)
        write_tensors(folders.writing(5) / "a.safetensors", {"w": torch.full((2,), value)})
        folders.commit(5)
    assert read_tensors(root / "step_00000005" / "a.safetensors")["w"].tolist() == [2.0, 2.0]
    assert (root / "aside_step_00000005").is_dir()
