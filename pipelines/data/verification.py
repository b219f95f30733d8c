"""Shards read again from end to end and compared with their checksums."""

import zlib
from collections.abc import Callable
from pathlib import Path

from numpy import ndarray

from pipelines.data.shards import ShardInfo, SplitInfo, file_sha256, read_index, read_manifest
from pipelines.errors import DataError

# more names of one damaged shard do not help
_MAX_NAMED_KEYS = 8


def verify_shards(folder: Path, *, on_shard: Callable[[], None] = lambda: None) -> tuple[str, ...]:
    """What is wrong with a folder of shards, each with shard and keys; empty if nothing is.

    Raises:
        DataError: there is no readable manifest.
    """
    manifest = read_manifest(folder)
    problems: list[str] = []
    for split in manifest.splits.values():
        index = _checked_index(folder, split, problems)
        for number, shard in enumerate(split.shards):
            rows = None if index is None else index[index["shard"] == number]
            problems += _shard_problems(folder / shard.file, shard, rows)
            on_shard()
    return tuple(problems)


def _checked_index(folder: Path, split: SplitInfo, problems: list[str]) -> ndarray | None:
    try:
        index = read_index(folder, split)
    except DataError as error:
        problems.append(str(error))
        return None
    if file_sha256(folder / split.index) != split.index_sha256:
        problems.append(f"{folder / split.index}: the checksum differs from the manifest.")
    return index


def _shard_problems(path: Path, shard: ShardInfo, rows: ndarray | None) -> list[str]:
    if not path.exists():
        return [f"{path}: is missing, with {shard.num_samples} samples."]
    if path.stat().st_size == shard.num_bytes and file_sha256(path) == shard.sha256:
        return []
    keys = [] if rows is None else _damaged_keys(path, rows)
    where = ", ".join(keys[:_MAX_NAMED_KEYS]) or "none; the damage lies between samples"
    more = f" and {len(keys) - _MAX_NAMED_KEYS} more" if len(keys) > _MAX_NAMED_KEYS else ""
    return [
        f"{path}: the checksum differs ({path.stat().st_size} of {shard.num_bytes} bytes there); "
        f"damaged samples: {where}{more}."
    ]


def _damaged_keys(path: Path, rows: ndarray) -> list[str]:
    damaged = []
    with path.open("rb") as file:
        for row in rows:
            file.seek(int(row["offset"]))
            if zlib.crc32(file.read(int(row["num_bytes"]))) != row["crc32"]:
                damaged.append(row["key"].decode("utf-8"))
    return damaged
