"""The folders of shards that a run reads: of each, the samples that one task can use."""

import gc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from pipelines.data.config import DataConfig
from pipelines.data.mixture import SourceSize
from pipelines.data.protection import check_protection
from pipelines.data.shard_cache import ShardCache, default_cache_folder
from pipelines.data.shard_folder import LocalShards, RemoteShards, is_remote, open_shards
from pipelines.data.shards import Manifest, RawSample, ShardInfo
from pipelines.errors import ConfigError, DataError
from xdecoder.batch import Vocabulary

# a sample takes part in a task if this count of its index row is positive
_NEEDS = {
    "segmentation": "num_segments",
    "detection": "num_instances",
    "image_text": "num_captions",
}
# what makes shards that a task can use, where it is not plain
_REMEDIES = {
    "detection": ": `python -m pipelines.prepare` packs boxes from COCO's instances_*.json, from "
    "any other folder in that format, and from objects365"
}


@dataclass(frozen=True, kw_only=True)
class ShardSource:
    """The samples of one folder of shards that one task can use."""

    name: str
    folder: LocalShards | RemoteShards
    manifest: Manifest
    shards: tuple[ShardInfo, ...]
    vocabulary: Vocabulary
    index: ndarray
    rows: Int[ndarray, " n"]

    @classmethod
    def open(
        cls, address: str, split: str, task: str, *, cache: ShardCache | None
    ) -> "ShardSource":
        """The source of a task at a path or URL.

        Raises:
            DataError: the folder has no such split, or no sample of it serves the task.
        """
        folder = open_shards(address, cache)
        manifest = folder.manifest()
        info = manifest.split(address, split)
        index = folder.index(info)
        rows = np.flatnonzero(index[_NEEDS[task]] > 0)
        if len(rows) == 0:
            raise DataError(
                f"{address}: the {task} task needs samples with {_NEEDS[task]} > 0 in split "
                f"{split!r}; none of {len(index)} has. Set data.{task}.batch_size=0, or name other "
                f"shards{_REMEDIES.get(task, '')}."
            )
        return cls(
            name=address,
            folder=folder,
            manifest=manifest,
            shards=info.shards,
            vocabulary=Vocabulary(names=manifest.names, is_thing=manifest.is_thing),
            index=index,
            rows=rows,
        )

    @property
    def is_remote(self) -> bool:
        """Whether its shards are fetched."""
        return isinstance(self.folder, RemoteShards)

    def size(self) -> SourceSize:
        """How many usable samples each shard has."""
        counts = np.bincount(self.index["shard"][self.rows], minlength=len(self.shards))
        return SourceSize(name=self.name, samples_per_shard=tuple(int(count) for count in counts))

    def window_bytes(self, window: int) -> int:
        """The most bytes of shards that are read in turn, and those that come next."""
        sizes = sorted((shard.num_bytes for shard in self.shards), reverse=True)
        return sum(sizes[: window + 1])

    def read(self, sample: int) -> RawSample:
        """The sample with this number among the usable ones. Raises: as `shards.read_sample`."""
        row = self.index[self.rows[sample]]
        return self.folder.read(self.shards[row["shard"]], row)


Sources = dict[str, tuple[ShardSource, ...]]


def open_sources(config: DataConfig) -> Sources:
    """The sources of each task that has a batch, in the order of the batches.

    Raises:
        ConfigError: no shards for a task, or a cache too small for them.
        DataError: shards are missing or damaged, cannot serve their task, or do not leave out what
            `data.protected` demands.
    """
    parts = {task: part for task, part in config.parts().items() if part.batch_size > 0}
    for task, part in parts.items():
        if not part.shards:
            raise ConfigError(
                f"data.{task}.shards must name at least one folder of shards; got none. "
                f"Set it, or data.{task}.batch_size=0."
            )
    cache = _open_cache(config, [folder for part in parts.values() for folder in part.shards])
    sources = {
        task: tuple(
            ShardSource.open(folder, config.split, task, cache=cache) for folder in part.shards
        )
        for task, part in parts.items()
    }
    _require_room(cache, sources, config.shuffle_window)
    opened = [(source.name, source.manifest) for part in sources.values() for source in part]
    check_protection(opened, config.protected)
    if cache is not None:
        # a worker that inherits old connections waits a second for each, as the thread that would
        # close them is not in it
        gc.collect()
    return sources


def _open_cache(config: DataConfig, folders: list[str]) -> ShardCache | None:
    if not any(is_remote(folder) for folder in folders):
        return None
    folder = Path(config.cache_dir) if config.cache_dir else default_cache_folder()
    return ShardCache(folder, max_bytes=int(config.cache_gib * 2**30))


def _require_room(cache: ShardCache | None, sources: Sources, window: int) -> None:
    """Refuse a cache in which the shards that are read together would push each other out."""
    if cache is None:
        return
    remote = {
        source.name: source for part in sources.values() for source in part if source.is_remote
    }
    needed = sum(source.window_bytes(window) for source in remote.values())
    if needed > cache.max_bytes:
        raise ConfigError(
            f"data.cache_gib must hold the shards that are mixed with each other and the next one, "
            f"{needed / 2**30:.3g} GiB; got {cache.max_bytes / 2**30:.3g}. Raise it, or lower "
            "data.shuffle_window."
        )
