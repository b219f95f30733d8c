"""A folder of shards, on a disk of this machine or behind a URL."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from pipelines.data.shard_cache import ShardCache, read_remote
from pipelines.data.shards import (
    MANIFEST_NAME,
    Manifest,
    RawSample,
    ShardInfo,
    SplitInfo,
    file_sha256,
    parse_manifest,
    read_index_at,
    read_manifest,
    read_sample,
    read_sample_at,
)
from pipelines.errors import DataError

# a copy may be removed between being fetched and being opened, if the cache is nearly full
_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class LocalShards:
    """Shards that are read where they lie."""

    folder: Path

    def manifest(self) -> Manifest:
        """The manifest. Raises: as `shards.read_manifest`."""
        return read_manifest(self.folder)

    def index(self, split: SplitInfo) -> ndarray:
        """One row per sample, checked.

        Raises:
            DataError: the index is missing, or not the one that the manifest means.
        """
        path = self.folder / split.index
        if path.is_file() and file_sha256(path) != split.index_sha256:
            raise DataError(
                f"{path}: the checksum differs from the manifest. Copy the shards again."
            )
        return read_index_at(path, split)

    def read(self, shard: ShardInfo, row: np.void) -> RawSample:
        """One sample. Raises: as `shards.read_sample`."""
        return read_sample(self.folder, shard, row)


@dataclass(frozen=True, kw_only=True)
class RemoteShards:
    """Shards behind a URL that fsspec reads, kept in the cache of this node."""

    url: str
    cache: ShardCache

    def manifest(self) -> Manifest:
        """The manifest, fetched anew.

        Raises:
            DataError: it cannot be fetched, or is no manifest.
        """
        address = self._address(MANIFEST_NAME)
        try:
            text = read_remote(address).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{address}: not a readable manifest ({error}).") from error
        return parse_manifest(text, where=address)

    def index(self, split: SplitInfo) -> ndarray:
        """One row per sample. Raises: as `ShardCache.fetch` and `shards.read_index`."""
        address = self._address(split.index)
        path = self.cache.fetch(address, sha256=split.index_sha256)
        return read_index_at(path, split)

    def read(self, shard: ShardInfo, row: np.void) -> RawSample:
        """One sample. Raises: as `ShardCache.fetch` and `shards.read_sample`."""
        address = self._address(shard.file)
        for attempt in range(_ATTEMPTS):
            path = self.cache.fetch(address, sha256=shard.sha256, num_bytes=shard.num_bytes)
            try:
                return read_sample_at(path, row, name=address)
            except DataError:
                if path.exists() or attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _address(self, file: str) -> str:
        return f"{self.url.rstrip('/')}/{file}"


def open_shards(address: str, cache: ShardCache | None) -> LocalShards | RemoteShards:
    """The folder at a path, or at a URL with a protocol."""
    if not is_remote(address):
        return LocalShards(folder=Path(address))
    assert cache is not None, "whoever has remote shards makes a cache for them"
    return RemoteShards(url=address, cache=cache)


def is_remote(address: str) -> bool:
    """Whether the address names a protocol, as s3://bucket/folder does."""
    return "://" in address
