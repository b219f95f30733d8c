import json
import os
from pathlib import Path

import pytest
import torch

from pipelines.config import CheckpointConfig
from pipelines.engine.checkpoint_files import (
    CheckpointFolders,
    read_tensors,
    step_of,
    verify,
    write_tensors,
    write_text_atomically,
)
from pipelines.errors import CheckpointError


def save(folders: CheckpointFolders, step: int) -> Path:
    folders.begin(step)
    write_tensors(folders.writing(step) / "model.safetensors", {"w": torch.full((2, 3), 1.0)})
    (folders.writing(step) / "state.json").write_text(json.dumps({"step": step}))
    return folders.commit(step)


@pytest.fixture
def folders(tmp_path: Path) -> CheckpointFolders:
    return CheckpointFolders(tmp_path / "checkpoints", CheckpointConfig(keep_last=2))


def test_committed_folder_is_complete_and_latest(folders: CheckpointFolders) -> None:
    folder = save(folders, 30)
    verify(folder)
    assert step_of(folder) == 30
    assert (folders.root / "latest").resolve() == folder.resolve()
    assert folders.newest_complete() == (folder, ())


def test_only_the_newest_are_kept(folders: CheckpointFolders) -> None:
    for step in (5, 10, 100):
        save(folders, step)
    assert sorted(path.name for path in folders.root.iterdir()) == [
        *("latest", "step_00000010", "step_00000100")
    ]


def test_unfinished_folder_does_not_count_and_is_removed(folders: CheckpointFolders) -> None:
    old = save(folders, 5)
    folders.begin(10)
    write_tensors(folders.writing(10) / "model.safetensors", {"w": torch.ones(2, 3)})
    assert folders.newest_complete() == (old, ())
    save(folders, 15)
    assert not list(folders.root.glob(".writing_*"))


@pytest.mark.parametrize("damage", ["bit", "short", "missing", "manifest", "mark"])
def test_damaged_newest_is_named_and_the_one_before_is_used(
    folders: CheckpointFolders, damage: str
) -> None:
    old, new = save(folders, 5), save(folders, 10)
    weights = new / "model.safetensors"
    if damage == "bit":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "short":
        os.truncate(weights, weights.stat().st_size - 1)
    elif damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        (new / "MANIFEST.json").write_text('{"files": {}}')
    else:
        (new / "COMPLETE").unlink()
    newest, (complaint,) = folders.newest_complete()
    assert newest == old
    assert "step_00000010" in complaint
    named = {"bit": "model.safetensors is damaged", "short": "model.safetensors is damaged"}
    named |= {"missing": "model.safetensors is missing", "manifest": "MANIFEST.json is damaged"}
    assert named.get(damage, "it was not finished") in complaint


def test_nothing_but_damage_is_an_error_and_not_a_fresh_start(folders: CheckpointFolders) -> None:
    (save(folders, 5) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"all 1 are damaged: .*state.json is missing"):
        folders.newest_complete()


def test_no_checkpoint_is_none(folders: CheckpointFolders) -> None:
    assert folders.newest_complete() == (None, ())


def test_later_checkpoints_are_set_aside(folders: CheckpointFolders) -> None:
    for step in (5, 10):
        save(folders, step)
    folders.set_aside_after(5)
    newest, _ = folders.newest_complete()
    assert newest is not None
    assert newest.name == "step_00000005"
    assert (folders.root / "aside_step_00000010").is_dir()
    save(folders, 10)


def test_tied_tensors_are_stored_once_and_read_twice(tmp_path: Path) -> None:
    table = torch.arange(6.0).view(2, 3)
    tensors = {"a": table, "b": table, "c": table.t(), "empty": torch.zeros(0, 3)}
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors)
    back = read_tensors(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor)
    assert path.stat().st_size < 600


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_text_atomically(path, "one")
    write_text_atomically(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]
