"""From a source and what is asked of it to its shards."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.data.evaluation_sets import read_protection
from pipelines.data.packing import PackRequest, pack
from pipelines.data.records import CocoSplit
from pipelines.data.shards import Manifest
from pipelines.data.sources import Request, Source
from pipelines.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PrepareRequest:
    """What `prepare` was asked for.

    request: with any split; `splits` say which. splits: `A`, or `A+B` packed together as A, or
    `NAME=A+B`. protect: evaluation sets to leave out. protect_roots: where their lists lie.
    """

    source: Source
    request: Request
    splits: Sequence[str]
    protect: Sequence[str] = ()
    protect_roots: Sequence[Path] = ()
    shard_bytes: int = 32 << 20
    min_shards: int = 1
    part: tuple[int, int] = (0, 1)
    num_workers: int = 1


def prepare(
    wanted: PrepareRequest,
    out: Path,
    *,
    on_total: Callable[[int], None] = lambda num_samples: None,
    on_samples: Callable[[int], None] = lambda num_samples: None,
) -> Manifest | None:
    """The manifest of the finished folder; None while other parts are missing.

    Raises:
        ConfigError: an option does not fit the source.
        DataError: files are missing or damaged; the message names them.
    """
    request = _with_usual_split_by(wanted)
    splits = dict(_read_splits(wanted.source, request, text) for text in wanted.splits)
    roots = [*wanted.protect_roots, request.root]
    if request.refer is not None:
        roots.append(request.refer.parent)
    packing = PackRequest(
        splits=splits,
        source={"kind": wanted.source.name, "root": request.root.name, "url": wanted.source.url},
        licence=wanted.source.licence,
        protection=read_protection(wanted.protect, roots),
        shard_bytes=wanted.shard_bytes,
        min_shards=wanted.min_shards,
        part=wanted.part,
        num_workers=wanted.num_workers,
    )
    return pack(packing, out, on_total=on_total, on_samples=on_samples)


def _with_usual_split_by(wanted: PrepareRequest) -> Request:
    request = wanted.request
    if wanted.source.split_bys and not request.split_by:
        return replace(request, split_by=wanted.source.split_bys[0])
    return request


def _read_splits(source: Source, request: Request, text: str) -> tuple[str, CocoSplit]:
    name, separator, parts = text.partition("=")
    names = (parts if separator else text).split("+")
    name = name if separator else names[0]
    if not name or not all(names):
        raise ConfigError(f"--split must be A, A+B or NAME=A+B; got {text!r}.")
    found = [source.read(replace(request, split=part)) for part in names]
    return name, found[0] if len(found) == 1 else _joined(name, found)


def _joined(name: str, splits: Sequence[CocoSplit]) -> CocoSplit:
    first = splits[0]
    if any(split.categories != first.categories for split in splits):
        raise ConfigError(
            f"--split {name}: only splits with the same classes can be packed as one."
        )
    stamps = "\n".join(split.stamp for split in splits)
    return replace(
        first,
        name=name,
        records=tuple(record for split in splits for record in split),
        annotation_files=tuple(
            dict.fromkeys(path for split in splits for path in split.annotation_files)
        ),
        is_complete=all(split.is_complete for split in splits),
        stamp=hashlib.sha256(stamps.encode("utf-8")).hexdigest(),
    )
