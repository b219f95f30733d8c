import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.shards import read_index, read_manifest, read_sample
from pipelines.errors import DataError


def _rows(folder: Path) -> tuple:
    split = read_manifest(folder).splits["train"]
    return split, read_index(folder, split)


def test_every_sample_is_found_at_its_place(shards: Path) -> None:
    split, index = _rows(shards)
    for row in index[::-1]:
        sample = read_sample(shards, split.shards[row["shard"]], row)
        assert sample.key == row["key"].decode()
        assert set(sample.members) == {"jpg", "json", "panoptic.png"}
        assert json.loads(sample.member("json"))["file_name"] == f"{sample.key}.jpg"


def test_a_member_that_is_not_there_is_named(shards: Path) -> None:
    split, index = _rows(shards)
    sample = read_sample(shards, split.shards[0], index[0])
    with pytest.raises(
        DataError, match=rf"train-000000\.tar: sample {sample.key} must hold .*\.mp4"
    ):
        sample.member("mp4")


@pytest.mark.parametrize("where", [0, 130, 700, -1])
def test_one_flipped_byte_is_named_by_shard_and_key(own_shards: Path, where: int) -> None:
    split, index = _rows(own_shards)
    row = index[index["shard"] == 1][2]
    path = own_shards / split.shards[1].file
    blob = bytearray(path.read_bytes())
    blob[int(row["offset"]) + where % int(row["num_bytes"])] ^= 16
    path.write_bytes(blob)
    key = row["key"].decode()
    with pytest.raises(DataError, match=rf"train-000001\.tar: sample {key} is damaged"):
        read_sample(own_shards, split.shards[1], row)


def test_a_shard_that_ends_early_is_named(own_shards: Path) -> None:
    split, index = _rows(own_shards)
    row = index[index["shard"] == 0][-1]
    path = own_shards / split.shards[0].file
    path.write_bytes(path.read_bytes()[: int(row["offset"]) + 600])
    with pytest.raises(DataError, match=r"is damaged \(600 of \d+ bytes read"):
        read_sample(own_shards, split.shards[0], row)


def test_a_shard_that_is_missing_is_named(own_shards: Path) -> None:
    split, index = _rows(own_shards)
    (own_shards / split.shards[0].file).unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar: the shard cannot be opened"):
        read_sample(own_shards, split.shards[0], index[0])


def test_an_index_of_other_shards_is_noticed(own_shards: Path) -> None:
    split, index = _rows(own_shards)
    row = np.array(index)[0]
    row["key"] = b"000000000099"
    with pytest.raises(DataError, match="sample 000000000099 is not at its place; found"):
        read_sample(own_shards, split.shards[0], row)


def test_a_folder_without_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"found none\. Make them with `python -m pipelines\.prepare"
    ):
        read_manifest(tmp_path)


def test_a_split_that_is_not_there_is_named(shards: Path) -> None:
    with pytest.raises(DataError, match=r"split must be one of \['train', 'val'\]; got 'test'"):
        read_manifest(shards).split(shards, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:200], "not a readable manifest"),
        (lambda text: text.replace('"version": 1', '"version": 7'), r"version 1; got .*7"),
        (lambda text: text.replace('"is_thing"', '"things"'), "not a readable manifest"),
    ],
)
def test_a_damaged_manifest_is_named(own_shards: Path, change, message: str) -> None:
    path = own_shards / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        read_manifest(own_shards)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(13, "<i8"), "index columns must be"),
        ("short", r"must have 13 rows as the manifest says; got 12"),
        ("cut", "not a readable index"),
    ],
)
def test_a_damaged_index_is_named(own_shards: Path, content, message: str) -> None:
    path = own_shards / "train.index.npy"
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif content == "short":
        np.save(path, np.load(path)[:12])
    else:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=message):
        read_index(own_shards, read_manifest(own_shards).splits["train"])
