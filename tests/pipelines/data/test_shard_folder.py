import json
import multiprocessing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from pipelines.data import shard_cache
from pipelines.data.config import DataConfig, ImageTextDataConfig, SegmentationDataConfig
from pipelines.data.shard_cache import ShardCache
from pipelines.data.shard_folder import LocalShards, RemoteShards, open_shards
from pipelines.data.shards import read_index, read_manifest
from pipelines.data.stream import build_stream
from pipelines.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache, "_PAUSES", ())


def _config(address: str, cache: Path, num_workers: int = 0, **fields: object) -> DataConfig:
    return DataConfig(
        segmentation=SegmentationDataConfig(shards=(address,), size_hw=(48, 72), batch_size=4),
        image_text=ImageTextDataConfig(shards=(address,), size_hw=(32, 44), batch_size=8),
        num_workers=num_workers,
        shuffle_window=1,
        cache_dir=str(cache),
        **fields,
    )


def _keys(config: DataConfig, count: int, **place: int) -> list[list[tuple[str, ...]]]:
    stream = build_stream(config, **{"rank": 0, "world_size": 1, **place}, seed=0)
    try:
        return [[batch.keys for batch in batches] for batches, _ in islice(stream, count)]
    finally:
        stream.close()


def _largest_window(shards: Path) -> int:
    sizes = [shard.num_bytes for shard in read_manifest(shards).splits["train"].shards]
    return sum(sorted(sizes)[-2:])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_remote_shards_give_the_stream_of_local_ones(
    shards: Path, tmp_path: Path, num_workers: int
) -> None:
    # less than all shards: some are fetched, removed, and fetched again
    room = (_largest_window(shards) + 1000) / 2**30
    remote = _config(f"file://{shards}", tmp_path / "cache", num_workers, cache_gib=room)
    local = _config(str(shards), tmp_path / "unused")
    assert _keys(remote, 8) == _keys(local, 8)
    used = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir() if path.is_file())
    assert 0 < used <= room * 2**30
    assert not (tmp_path / "unused").exists()


def test_ranks_of_a_node_share_what_they_fetch(shards: Path, tmp_path: Path) -> None:
    config = _config(f"file://{shards}", tmp_path / "cache", 1)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def rank(number: int) -> None:
        results.put((number, _keys(config, 4, rank=number, world_size=2)))

    processes = [context.Process(target=rank, args=(number,)) for number in (0, 1)]
    for process in processes:
        process.start()
    parts = dict(results.get() for _ in processes)
    for process in processes:
        process.join(timeout=30)
    joined = [[parts[0][step][task] + parts[1][step][task] for task in (0, 1)] for step in range(4)]
    assert joined == _keys(_config(str(shards), tmp_path), 4)
    split = read_manifest(shards).splits["train"]
    names = {path.name for path in (tmp_path / "cache").iterdir() if path.is_file()}
    assert names == {split.index_sha256, *(shard.sha256 for shard in split.shards)}


def test_a_cache_without_room_for_a_window_is_refused(shards: Path, tmp_path: Path) -> None:
    room = (_largest_window(shards) - 1000) / 2**30
    config = _config(f"file://{shards}", tmp_path / "cache", cache_gib=room)
    with pytest.raises(ConfigError, match=r"data\.cache_gib must hold the shards that are mixed"):
        _keys(config, 1)
    _keys(replace(config, cache_gib=1.0), 1)


def test_a_remote_shard_that_was_replaced_is_named_by_its_url(
    own_shards: Path, tmp_path: Path
) -> None:
    path = own_shards / "train-000001.tar"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(DataError, match=rf"^file://{path}: must have \d+ bytes and checksum"):
        _keys(_config(f"file://{own_shards}", tmp_path / "cache"), 4)


def test_a_remote_manifest_is_checked_like_a_local_one(own_shards: Path, tmp_path: Path) -> None:
    folder = open_shards(f"file://{own_shards}/", ShardCache(tmp_path / "c", max_bytes=1 << 20))
    assert isinstance(folder, RemoteShards)
    assert folder.manifest() == read_manifest(own_shards)
    path = own_shards / "manifest.json"
    path.write_text(path.read_text()[:99])
    with pytest.raises(DataError, match=rf"^file://{path}: not a readable manifest"):
        folder.manifest()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=rf"^file://{path}: not a readable manifest"):
        folder.manifest()
    path.unlink()
    with pytest.raises(DataError, match=rf"^file://{path}: cannot be read"):
        folder.manifest()


def test_a_copy_that_vanished_before_it_was_read_is_fetched_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path, max_bytes=1 << 20)
    folder = RemoteShards(url=f"file://{shards}", cache=cache)
    split = read_manifest(shards).splits["train"]
    row = read_index(shards, split)[0]
    plain_fetch, removals = cache.fetch, iter([1, 2, 3])

    def fetch(*args: object, **kwargs: object) -> Path:
        path = plain_fetch(*args, **kwargs)
        if next(removals, None):
            path.unlink()
        return path

    monkeypatch.setattr(cache, "fetch", fetch)
    sample = folder.read(split.shards[row["shard"]], row)
    assert sample.key == row["key"].decode()
    assert sample.shard == f"file://{shards}/train-000000.tar"
    assert next(removals, None) is None


def test_an_index_that_the_manifest_does_not_mean_is_refused(own_shards: Path) -> None:
    path = own_shards / "manifest.json"
    document = json.loads(path.read_text())
    document["splits"]["train"]["index_sha256"] = "0" * 64
    path.write_text(json.dumps(document))
    folder = LocalShards(folder=own_shards)
    with pytest.raises(DataError, match=r"train\.index\.npy: the checksum differs from the mani"):
        folder.index(folder.manifest().splits["train"])


@pytest.mark.parametrize("name", ["../other.tar", "/etc/passwd", "..", ""])
def test_a_manifest_that_names_files_elsewhere_is_refused(own_shards: Path, name: str) -> None:
    path = own_shards / "manifest.json"
    document = json.loads(path.read_text())
    document["splits"]["train"]["shards"][1]["file"] = name
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="files must lie beside the manifest; got"):
        read_manifest(own_shards)
