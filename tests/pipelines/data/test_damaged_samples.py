"""A damaged sample is replaced by another one, in the same way whoever meets it."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.config import DataConfig, ImageTextDataConfig, SegmentationDataConfig
from pipelines.data.shards import read_index, read_manifest
from pipelines.data.stream import build_stream
from pipelines.errors import DataError

NUM_STEPS = 8


def _config(shards: Path, num_workers: int = 0, **fields: object) -> DataConfig:
    return DataConfig(
        segmentation=SegmentationDataConfig(shards=(str(shards),), size_hw=(48, 72), batch_size=4),
        image_text=ImageTextDataConfig(shards=(str(shards),), size_hw=(32, 44), batch_size=8),
        num_workers=num_workers,
        shuffle_window=2,
        **fields,
    )


def _damage(shards: Path, *numbers: int) -> list[str]:
    """Flip a byte in the samples of these rows of the index; their keys."""
    split = read_manifest(shards).splits["train"]
    index = np.array(read_index(shards, split))
    for row in index[list(numbers)]:
        path = shards / split.shards[row["shard"]].file
        blob = bytearray(path.read_bytes())
        blob[int(row["offset"]) + 900] ^= 255
        path.write_bytes(blob)
    return [key.decode() for key in index["key"][list(numbers)]]


def _steps(
    config: DataConfig, count: int, *, rank: int = 0, world_size: int = 1, state=None
) -> Iterator[tuple[list[tuple[str, ...]], list[str], dict]]:
    """The keys of each batch, the keys that were damaged, the state."""
    found: list[str] = []
    stream = build_stream(config, rank=rank, world_size=world_size, seed=0, state=state)
    stream.on_damage = lambda damage: found.append(damage.key)
    try:
        for batches, after in islice(stream, count):
            yield [batch.keys for batch in batches], found.copy(), after
            found.clear()
    finally:
        stream.close()


def test_a_substitute_takes_the_place_and_everything_else_stays(
    own_shards: Path, shards: Path
) -> None:
    whole = list(_steps(_config(shards), NUM_STEPS))
    damaged = set(_damage(own_shards, 4, 9))
    replaced = 0
    for (keys, _, state), (found_keys, found, found_state) in zip(
        whole, _steps(_config(own_shards), NUM_STEPS), strict=True
    ):
        assert found_state == state
        for batch, found_batch in zip(keys, found_keys, strict=True):
            assert not damaged & set(found_batch)
            moved = [old for old, new in zip(batch, found_batch, strict=True) if old != new]
            assert set(moved) == damaged & set(batch)
            replaced += len(moved)
        assert set(found) <= damaged
        assert len(found) >= sum(key in damaged for batch in keys for key in batch)
    # each is drawn twice or more by both tasks
    assert replaced >= 8


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 3), (2, 0), (2, 1), (4, 0), (4, 1)])
def test_all_ranks_and_workers_replace_alike(
    own_shards: Path, world_size: int, num_workers: int
) -> None:
    _damage(own_shards, 2, 3, 11)
    alone = list(_steps(_config(own_shards), 5))
    ranks = [
        list(_steps(_config(own_shards, num_workers), 5, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for step, (keys, found, state) in enumerate(alone):
        parts = [steps[step] for steps in ranks]
        joined = [sum((part[0][task] for part in parts), ()) for task in (0, 1)]
        assert joined == keys
        assert sorted(key for part in parts for key in part[1]) == sorted(found)
        assert all(part[2] == state for part in parts)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_stream_replaces_alike(own_shards: Path, num_workers: int) -> None:
    _damage(own_shards, 0, 7)
    whole = list(_steps(_config(own_shards), NUM_STEPS))
    state = json.loads(json.dumps(whole[2][2]))
    resumed = list(_steps(_config(own_shards, num_workers), NUM_STEPS - 3, state=state))
    assert [step[0] for step in resumed] == [step[0] for step in whole[3:]]
    assert [step[1] for step in resumed] == [step[1] for step in whole[3:]]


def test_a_substitute_that_is_damaged_is_replaced_too(own_shards: Path) -> None:
    damaged = set(_damage(own_shards, *range(11)))
    for keys, found, _ in _steps(_config(own_shards), 4):
        assert not damaged & {key for batch in keys for key in batch}
        assert set(found) <= damaged


def test_shards_without_a_whole_sample_end_the_stream(own_shards: Path) -> None:
    _damage(own_shards, *range(13))
    message = (
        r"data\.segmentation: in the place of a damaged sample, one of 16 others must be whole"
    )
    with pytest.raises(DataError, match=message):
        list(_steps(_config(own_shards), 1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_is_gone_is_not_skipped(own_shards: Path, num_workers: int) -> None:
    # on another machine it may be there
    (own_shards / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar: the shard cannot be opened"):
        list(_steps(_config(own_shards, num_workers), 4))


def test_what_a_damaged_sample_had_placed_is_overwritten(
    own_shards: Path, repack: Callable
) -> None:
    # the image is whole and placed before the picture of the segments turns out to be damaged
    def cut_png(members: dict[str, bytes]) -> dict[str, bytes]:
        return {n: c[:60] if n.endswith("png") else c for n, c in members.items()}

    index = read_index(own_shards, read_manifest(own_shards).splits["train"])
    damaged = {key.decode() for key in index["key"][:10]}
    for key in damaged:
        repack(own_shards, key, cut_png)
    # what ten images need would not fit beside the three whole ones
    for keys, found, _ in _steps(_config(own_shards), 6):
        assert not damaged & set(keys[0])
        assert set(found) <= damaged


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_id": 10**6}, r"must have class ids in \[0, \d+\]; got \[1000000\]"),
        ({"captions": []}, "must have a caption, as its index says; it has none"),
        ({"size_hw": [10_000, 10_000]}, r"must be an image of 1 to 64000000 pixels; its JSON says"),
        ({"double": True}, "must have segment ids that differ"),
    ],
)
def test_what_contradicts_itself_is_damaged(
    own_shards: Path, repack: Callable, fields: dict, message: str
) -> None:
    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        document = json.loads(members["000000000003.json"])
        if "class_id" in fields:
            document["segments"][0][1] = fields["class_id"]
        if "double" in fields:
            document["segments"].append(document["segments"][0])
        document |= {k: v for k, v in fields.items() if k in document}
        return {**members, "000000000003.json": json.dumps(document).encode()}

    repack(own_shards, "000000000003", change)
    stream = build_stream(_config(own_shards), rank=0, world_size=1, seed=0)
    with pytest.raises(DataError, match=rf"\.tar: sample 000000000003 {message}"):
        list(islice(stream, 6))
