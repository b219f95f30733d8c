"""An unfinished folder of shards: what is done stays done, whoever did it.

    OUT.partial/plan.json         checksum of what is packed; another plan is refused
    OUT.partial/shards/           tars under their final names
    OUT.partial/parts/*.npy       index rows of a finished shard
    OUT.partial/parts/*.json      everything else about it, written last

Files appear under their names complete or not at all, so that jobs need no locks: two that pack the
same shard write the same bytes.
"""

import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy import ndarray

from pipelines.data.shards import (
    MANIFEST_NAME,
    Manifest,
    RemovedSample,
    ShardInfo,
    file_sha256,
    read_manifest,
    write_manifest,
)
from pipelines.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PackedShard:
    """A finished shard: its index rows, segments per class, and what was counted and removed."""

    info: ShardInfo
    rows: ndarray
    histogram: Counter[int] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    removed: tuple[RemovedSample, ...] = ()


class WorkFolder:
    """The unfinished state of the folder `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.root = out.parent / f"{out.name}.partial"
        self.shards = self.root / "shards"
        self.parts = self.root / "parts"

    def finished_manifest(self) -> Manifest | None:
        """The manifest of `out`, if it is finished."""
        return read_manifest(self.out) if (self.out / MANIFEST_NAME).exists() else None

    def open(self, plan_sha256: str) -> None:
        """Make the folders, or take up those of the same plan.

        Raises:
            DataError: `out` holds something, or another plan is unfinished here.
        """
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise DataError(
                f"{self.out}: must be absent or an empty folder; it holds something else. "
                "Choose another folder, or move this one away."
            )
        plan = self.root / "plan.json"
        for folder in (self.shards, self.parts):
            folder.mkdir(parents=True, exist_ok=True)
        if not plan.exists():
            write_whole(plan, lambda file: file.write(json.dumps(plan_sha256).encode()))
        if json.loads(plan.read_text()) != plan_sha256:
            raise DataError(
                f"{self.root}: holds an unfinished preparation of other files or with other "
                f"options. Give those again to finish it, or remove {self.root}."
            )

    def finished(self, name: str, *, with_checksum: bool) -> PackedShard | None:
        """A shard that is there whole; None where it must be packed."""
        path = self.shards / name
        try:
            document = json.loads((self.parts / f"{name}.json").read_text(encoding="utf-8"))
            info = ShardInfo(**document["info"])
            is_whole = path.stat().st_size == info.num_bytes
            if not is_whole or (with_checksum and file_sha256(path) != info.sha256):
                return None
            rows = np.load(self.parts / f"{name}.npy", allow_pickle=False)
        except FileNotFoundError:
            return None
        return PackedShard(
            info=info,
            rows=rows,
            histogram=Counter({int(k): v for k, v in document["histogram"].items()}),
            counts=Counter(document["counts"]),
            removed=tuple(RemovedSample(**sample) for sample in document["removed"]),
        )

    def keep(self, packed: PackedShard) -> None:
        """Note that a shard is finished."""
        name = packed.info.file
        document = {
            "info": asdict(packed.info),
            "histogram": packed.histogram,
            "counts": packed.counts,
            "removed": [asdict(sample) for sample in packed.removed],
        }
        write_whole(self.parts / f"{name}.npy", lambda file: np.save(file, packed.rows))
        text = json.dumps(document)
        write_whole(self.parts / f"{name}.json", lambda file: file.write(text.encode()))

    def discard(self, *, only_if_empty: bool = False) -> None:
        """Remove the folder; only_if_empty: unless a shard was finished in it."""
        if not only_if_empty or not any(self.parts.glob("*.json")):
            shutil.rmtree(self.root, ignore_errors=True)

    def finish(self, manifest: Manifest, indices: dict[str, ndarray]) -> None:
        """Write indices and manifest, and give the folder its name; several jobs may do so at once.

        Raises:
            DataError: `out` was filled by somebody else in the meantime.
        """
        own = self.root / f"finish-{_process_name()}"
        try:
            own.mkdir(exist_ok=True)
            for name, rows in indices.items():
                np.save(own / name, rows)
            write_manifest(own, manifest)
            for path in own.iterdir():
                path.replace(self.shards / path.name)
            for leftover in self.shards.glob(".*"):
                leftover.unlink(missing_ok=True)
            # rename replaces an empty folder and nothing else
            self.shards.rename(self.out)
        except OSError as error:
            other = self.finished_manifest()
            if other is None or other.source != manifest.source:
                raise DataError(f"{self.out}: could not be written ({error}).") from error
        shutil.rmtree(self.root, ignore_errors=True)


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Makes a file that is complete as soon as it has its name."""
    hidden = path.parent / f".{path.name}.{_process_name()}"
    try:
        with hidden.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def _process_name() -> str:
    # nodes share the folder, and their processes may have the same number
    return f"{socket.gethostname()}-{os.getpid()}"
