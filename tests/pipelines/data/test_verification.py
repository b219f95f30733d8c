from pathlib import Path

import numpy as np
import pytest

from pipelines.data.shards import read_index, read_manifest
from pipelines.data.verification import verify_shards
from pipelines.errors import DataError


def test_shards_as_written_have_no_problem(shards: Path) -> None:
    calls: list[int] = []
    assert verify_shards(shards, on_shard=lambda: calls.append(1)) == ()
    manifest = read_manifest(shards)
    assert len(calls) == sum(len(split.shards) for split in manifest.splits.values())


def test_one_flipped_byte_is_found_and_named_by_shard_and_key(own_shards: Path) -> None:
    split = read_manifest(own_shards).splits["train"]
    row = np.array(read_index(own_shards, split))[5]
    path = own_shards / split.shards[row["shard"]].file
    blob = bytearray(path.read_bytes())
    blob[int(row["offset"]) + 700] ^= 1
    path.write_bytes(blob)
    (problem,) = verify_shards(own_shards)
    assert str(path) in problem
    assert problem.endswith(f"damaged samples: {row['key'].decode()}.")


def test_damage_between_samples_is_found(own_shards: Path) -> None:
    path = own_shards / "val-000000.tar"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    (problem,) = verify_shards(own_shards)
    assert "the damage lies between samples" in problem


def test_many_damaged_samples_are_counted(own_shards: Path) -> None:
    path = own_shards / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:2000])
    (problem,) = verify_shards(own_shards)
    num_samples = read_manifest(own_shards).splits["train"].shards[0].num_samples
    assert "(2000 of " in problem
    assert problem.count("0000000000") == min(8, num_samples)


def test_missing_shards_and_changed_indices_are_found(own_shards: Path) -> None:
    (own_shards / "train-000001.tar").unlink()
    index = np.load(own_shards / "val.index.npy")
    index["num_captions"][0] += 1
    np.save(own_shards / "val.index.npy", index)
    missing, changed = verify_shards(own_shards)
    assert "train-000001.tar: is missing, with" in missing
    assert "val.index.npy: the checksum differs from the manifest" in changed


def test_an_unreadable_index_does_not_end_the_search(own_shards: Path) -> None:
    (own_shards / "train.index.npy").write_bytes(b"")
    (own_shards / "train-000000.tar").write_bytes(b"")
    index, shard = verify_shards(own_shards)
    assert "train.index.npy: not a readable index" in index
    assert "train-000000.tar: the checksum differs (0 of " in shard


def test_a_folder_without_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shards need a manifest"):
        verify_shards(tmp_path)
