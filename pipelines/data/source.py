"""The samples of one folder of shards that one task can use."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from pipelines.data.mixture import SourceSize
from pipelines.data.shard_cache import ShardCache
from pipelines.data.shard_folder import LocalShards, RemoteShards, open_shards
from pipelines.data.shards import Manifest, RawSample, ShardInfo
from pipelines.errors import DataError
from xdecoder.batch import Vocabulary

# a sample takes part in a task if this count of its index row is positive
_NEEDS = {"segmentation": "num_segments", "image_text": "num_captions"}


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
                f"{split!r}; none of {len(index)} has. Set data.{task}.batch_size=0 or add data."
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
