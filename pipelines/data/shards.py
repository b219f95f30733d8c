"""The shard format: tar files that webdataset reads, an index of every sample, a manifest.

    OUT/manifest.json               vocabulary, source, and per split: counts, shards, checksums
    OUT/train-000000.tar            KEY.jpg [KEY.panoptic.png] KEY.json, sample after sample
    OUT/train.index.npy             one row per sample, in shard order

    train-000000.tar
    |<-- row 0: offset, num_bytes -->|<-- row 1 ------------->|
    | hdr jpg | hdr png | hdr json   | hdr jpg | hdr json     | ... end blocks
                                     ^ offset of row 1

The members of a sample lie side by side, so one read of `num_bytes` at `offset` fetches it, and any
process can fetch any sample: the order of training is a pure function of seed and epoch, resuming
is O(1), and neither world size nor worker count touches it. A plain sequential tar stream can do
none of this. The tars stay ordinary webdataset shards, readable without the index. Every row also
has a checksum of its bytes, because a damaged header otherwise ends a tar silently.
"""

import hashlib
import json
import os
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy import ndarray

from pipelines.data.tar_members import read_members
from pipelines.errors import DamagedSampleError, DataError

FORMAT = "generalized-decoder-shards"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
# num_segments is -1 where an image has no panoptic annotation at all
_INDEX_FIELDS = (
    ("shard", "<i4"),
    ("offset", "<i8"),
    ("num_bytes", "<i4"),
    ("crc32", "<u4"),
    ("num_segments", "<i2"),
    ("num_instances", "<i2"),
    ("num_captions", "<i2"),
    ("num_sentences", "<i2"),
)
# NumPy reads the header of an index as Python
_INDEX_ERRORS = (
    OSError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, SyntaxError, TokenError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar file."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RemovedSample:
    """A sample that was left out because an evaluation set holds its image.

    protects: the evaluation set. reason: what matched, `id`, `bytes` or `pixels`.
    """

    key: str
    protects: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ProtectedSet:
    """An evaluation set whose images are not in the shards.

    num_hashed: of its images, how many were there to be compared by content. ids_sha256: of the
    sorted ids, the same for the same set wherever its files lie.
    """

    num_images: int
    num_hashed: int
    ids_sha256: str


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """One split: its shards in index order, and how much of each annotation kind it has."""

    num_samples: int
    index: str
    index_sha256: str
    counts: dict[str, int]
    class_histogram: dict[str, int]
    shards: tuple[ShardInfo, ...]
    removed: tuple[RemovedSample, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds; class ids in the samples index `names`.

    protect: the evaluation sets whose images were removed, by name. filter_sha256: of everything
    that images were compared with; empty without protection.
    """

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    source: dict[str, Any]
    splits: dict[str, SplitInfo]
    licence: str = ""
    protect: dict[str, ProtectedSet] = field(default_factory=dict)
    filter_sha256: str = ""

    def split(self, folder: Path | str, name: str) -> SplitInfo:
        """One split of the folder.

        Raises:
            DataError: there is none of that name.
        """
        if name not in self.splits:
            raise DataError(f"{folder}: split must be one of {list(self.splits)}; got {name!r}.")
        return self.splits[name]


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """The members of one sample, undecoded, and where they came from."""

    shard: str
    key: str
    members: dict[str, bytes]

    def member(self, extension: str) -> bytes:
        """The bytes of `KEY.<extension>`.

        Raises:
            DamagedSampleError: the sample has no such member.
        """
        if extension not in self.members:
            raise DamagedSampleError(
                self.shard,
                self.key,
                f"must hold {self.key}.{extension}; it holds {sorted(self.members)}.",
            )
        return self.members[extension]


def index_dtype(key_length: int) -> np.dtype:
    """Row type of an index whose keys have at most this many characters."""
    return np.dtype([*_INDEX_FIELDS, ("key", f"S{max(1, key_length)}")])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`, the last file of a folder of shards."""
    document = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(manifest)}
    text = json.dumps(document, indent=1)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards.

    Raises:
        DataError: it is missing, unreadable, or of another format.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        raise DataError(
            f"{path}: shards need a manifest; found none. Make them with "
            f"`python -m pipelines.prepare SOURCE --root ROOT --out {folder}`."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the manifest cannot be read ({error}).") from error
    return parse_manifest(text, where=str(path))


def parse_manifest(text: str, *, where: str) -> Manifest:
    """The manifest in the text of a file.

    Raises:
        DataError: it is damaged, or of another format.
    """
    try:
        document = json.loads(text)
        found = (document.pop("format"), document.pop("version"))
        if found != (FORMAT, FORMAT_VERSION):
            raise DataError(
                f"{where}: must be {FORMAT} version {FORMAT_VERSION}; got {found}. Prepare again."
            )
        return Manifest(
            names=tuple(document["names"]),
            is_thing=tuple(document["is_thing"]),
            source=document["source"],
            splits={name: _split_info(split) for name, split in document["splits"].items()},
            licence=document.get("licence", ""),
            protect={k: ProtectedSet(**v) for k, v in document.get("protect", {}).items()},
            filter_sha256=document.get("filter_sha256", ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: not a readable manifest ({error!r}). Prepare again.") from error


def _split_info(document: dict[str, Any]) -> SplitInfo:
    for name in (document["index"], *(shard["file"] for shard in document["shards"])):
        # a manifest from elsewhere must not make us open files outside of its folder
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"files must lie beside the manifest; got {name!r}")
    shards = tuple(ShardInfo(**shard) for shard in document["shards"])
    removed = tuple(RemovedSample(**sample) for sample in document.get("removed", ()))
    return SplitInfo(**{**document, "shards": shards, "removed": removed})


def read_index(folder: Path, split: SplitInfo) -> ndarray:
    """The index rows of a split, mapped from disk.

    Raises:
        DataError: the file is missing or does not fit the manifest.
    """
    return read_index_at(folder / split.index, split)


def read_index_at(path: Path, split: SplitInfo) -> ndarray:
    """The index of a split, from a file anywhere.

    Raises: as `read_index`.
    """
    try:
        index = np.load(path, mmap_mode="r", allow_pickle=False)
    except _INDEX_ERRORS as error:
        raise DataError(f"{path}: not a readable index ({error}). Prepare again.") from error
    if index.dtype.names is None or index.dtype.names != index_dtype(1).names:
        raise DataError(f"{path}: index columns must be {index_dtype(1).names}; prepare again.")
    if len(index) != split.num_samples:
        raise DataError(
            f"{path}: must have {split.num_samples} rows as the manifest says; got {len(index)}."
        )
    if not _lies_within(index, split):
        raise DataError(
            f"{path}: every row must lie within a shard of the manifest; some do not. "
            "Prepare again."
        )
    return index


def _lies_within(index: ndarray, split: SplitInfo) -> bool:
    shards, starts, lengths = (index[name] for name in ("shard", "offset", "num_bytes"))
    if len(index) == 0:
        return True
    if (
        shards.min() < 0
        or shards.max() >= len(split.shards)
        or min(starts.min(), lengths.min()) < 0
    ):
        return False
    ends = np.array([shard.num_bytes for shard in split.shards])[shards]
    return bool((starts <= ends - lengths).all())


def read_sample(folder: Path, shard: ShardInfo, row: np.void) -> RawSample:
    """One sample, by one read, its bytes checked.

    Raises:
        DataError: the shard cannot be read.
        DamagedSampleError: the bytes are not those that were written, or not those of a sample.
    """
    return read_sample_at(folder / shard.file, row, name=str(folder / shard.file))


def read_sample_at(path: Path, row: np.void, *, name: str) -> RawSample:
    """The sample of an index row in a shard that lies at `path` and is known as `name`.

    Raises: as `read_sample`.
    """
    key = row["key"].decode("utf-8", "replace")
    blob = _read_range(path, int(row["offset"]), int(row["num_bytes"]))
    if len(blob) != row["num_bytes"] or zlib.crc32(blob) != row["crc32"]:
        raise DamagedSampleError(
            name,
            key,
            f"is damaged ({len(blob)} of {row['num_bytes']} bytes read, checksum differs). "
            "Copy the shard again, or prepare again.",
        )
    try:
        members = read_members(blob, key)
    except ValueError as error:
        raise DamagedSampleError(name, key, f"{error}. Prepare again.") from error
    return RawSample(shard=name, key=key, members=members)


def _read_range(path: Path, offset: int, num_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path}: the shard cannot be opened ({error.strerror}).") from error
    try:
        return os.pread(descriptor, num_bytes, offset)
    except OSError as error:
        raise DataError(
            f"{path}: {num_bytes} bytes at {offset} cannot be read ({error.strerror})."
        ) from error
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Checksum of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
