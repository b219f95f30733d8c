"""Records of a data set as shards: planned once, packed by any number of processes and jobs.

    OUT.partial/plan.json           what is packed; another plan is refused
    OUT.partial/shards/             tars as they become ready, each under its final name
    OUT.partial/parts/NAME.{npy,json}   index rows and counts of a finished shard, written last
    OUT/                            the folder `shards` with index and manifest, when all are there

A process that was killed leaves finished shards and perhaps a nameless rest; the same command again
checks the finished ones by checksum and packs the others. Several jobs may take parts of one plan;
whoever finds the last shard in place writes the manifest.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from pipelines.data.coco import CocoFolder
from pipelines.data.encode import ClassTable
from pipelines.data.packed_shard import MIN_SAMPLES_PER_WORKER, ShardJob, pack_shards
from pipelines.data.protection import ImageFilter
from pipelines.data.records import CocoRecord, CocoSplit
from pipelines.data.shards import (
    FORMAT_VERSION,
    Manifest,
    RemovedSample,
    SplitInfo,
    file_sha256,
    index_dtype,
)
from pipelines.data.work_folder import PackedShard, WorkFolder
from pipelines.errors import DataError

# samples of one shard come from all over the data set, whatever its order was
_PACKING_SEED = 20221221
# sizes of images are estimated from this many of them
_NUM_SIZED = 1024


@dataclass(frozen=True, kw_only=True)
class PackRequest:
    """What to pack, and how.

    source: of the manifest, at least `kind` and `root`. min_shards: so that as many jobs have work.
    part: which share of the shards this job packs, as (number, of how many).
    """

    splits: Mapping[str, CocoSplit]
    source: dict[str, Any]
    licence: str = ""
    protection: ImageFilter = field(default_factory=lambda: ImageFilter.of(()))
    shard_bytes: int = 32 << 20
    min_shards: int = 1
    part: tuple[int, int] = (0, 1)
    num_workers: int = 1


@dataclass(frozen=True, kw_only=True)
class _SplitPlan:
    name: str
    split: CocoSplit
    removed: tuple[RemovedSample, ...]
    parts: tuple[ndarray, ...]
    keys_sha256: str = ""

    def shard_name(self, number: int) -> str:
        return f"{self.name}-{number:06d}.tar"


def pack_coco(
    root: Path,
    out: Path,
    splits: Sequence[str],
    *,
    refs_name: str | None = None,
    shard_bytes: int = 32 << 20,
) -> Manifest | None:
    """The manifest of the shards of a COCO-format folder, the folder complete or absent.

    Raises:
        DataError: an annotation file or image is missing or contradicts another, or `out` is used.
    """
    folder = CocoFolder(root, refs_name=refs_name)
    request = PackRequest(
        splits={name: folder.split(name) for name in splits},
        source={"kind": "coco", "root": root.name},
        shard_bytes=shard_bytes,
    )
    return pack(request, out)


def pack(
    request: PackRequest,
    out: Path,
    *,
    on_total: Callable[[int], None] = lambda num_samples: None,
    on_samples: Callable[[int], None] = lambda num_samples: None,
) -> Manifest | None:
    """The manifest of the finished folder; None while shards of other parts are missing.

    Raises:
        DataError: an annotation file or image is missing or contradicts another, or `out` is used.
    """
    classes = _class_table(request)
    plans = [_plan(name, split, request) for name, split in request.splits.items()]
    source = _source(request, plans)
    work = WorkFolder(out)
    finished = work.finished_manifest()
    if finished is not None and finished.source == source:
        return finished
    work.open(source["plan_sha256"])
    try:
        _pack_own_part(request, plans, work, classes, on_total, on_samples)
    except BaseException:
        if request.part[1] == 1:
            work.discard(only_if_empty=True)
        raise
    # another job may have finished the folder since
    return _finish(request, plans, work, classes, source) or work.finished_manifest()


def _class_table(request: PackRequest) -> ClassTable:
    root = request.source["root"]
    lists = {split.categories for split in request.splits.values()}
    if len(lists) != 1:
        raise DataError(
            f"{root}: all splits in one folder of shards must list the same categories; "
            f"found {len(lists)} different lists. Prepare them into separate folders."
        )
    categories = next(iter(lists))
    prompts = Counter(category.prompt for category in categories)
    repeated = [name for name, count in prompts.items() if count > 1]
    if repeated:
        raise DataError(f"{root}: class names must differ from each other; repeated: {repeated}.")
    return ClassTable(
        categories=categories,
        class_ids={category.id: index for index, category in enumerate(categories)},
        paints_instances=not any(s.panoptic_categories for s in request.splits.values()),
    )


def _plan(name: str, split: CocoSplit, request: PackRequest) -> _SplitPlan:
    removed: list[RemovedSample] = []
    rows = np.arange(len(split))
    # records of a list from the web are too many to be made twice; their ids are seen when packed
    if split.is_complete and request.protection.sets:
        found = [request.protection.by_identity(record) for record in split]
        removed = [sample for sample in found if sample is not None]
        rows = np.flatnonzero([sample is None for sample in found])
    if len(rows) == 0:
        raise DataError(
            f"{request.source['root']}: split {name!r} has no image to pack; of {len(split)} that "
            f"are listed, {len(removed)} were removed by --protect."
        )
    keys_sha256 = ""
    if split.is_complete:
        keys_sha256 = _checked_keys(split)
        rows = rows[np.random.default_rng(_PACKING_SEED).permutation(len(rows))]
    sized = [split.records[row] for row in rows[:: max(1, len(rows) // _NUM_SIZED)]]
    mean_bytes = sum(_file_bytes(record) for record in sized) / len(sized)
    num_shards = max(request.min_shards, round(mean_bytes * len(rows) / request.shard_bytes), 1)
    parts = np.array_split(rows, min(num_shards, len(rows)))
    return _SplitPlan(
        name=name,
        split=split,
        removed=tuple(removed),
        parts=tuple(parts),
        keys_sha256=keys_sha256,
    )


def _checked_keys(split: CocoSplit) -> str:
    seen: set[str] = set()
    for record in split:
        key = record.sample_key
        if "." in key or key in seen:
            raise DataError(
                f"{record.image_path}: file names without their ending are sample keys and must "
                f"be unique and free of dots; got {key!r}."
            )
        seen.add(key)
        if not record.image_path.exists():
            raise DataError(f"{record.image_path}: image {record.image_id} is listed, not there.")
    return hashlib.sha256("\n".join(sorted(seen)).encode("utf-8")).hexdigest()


def _file_bytes(record: CocoRecord) -> int:
    if record.image_range is not None:
        return record.image_range[1]
    return record.image_path.stat().st_size if record.image_path.exists() else 0


def _source(request: PackRequest, plans: Sequence[_SplitPlan]) -> dict[str, Any]:
    files = {path for split in request.splits.values() for path in split.annotation_files}
    hashes = {path.name: file_sha256(path) for path in sorted(files)}
    source = {**request.source, "annotation_sha256": hashes}
    plan = {
        "version": FORMAT_VERSION,
        "source": source,
        "filter": request.protection.sha256(),
        "shards": {plan.name: [len(part) for part in plan.parts] for plan in plans},
        "records": {plan.name: [plan.keys_sha256, plan.split.stamp] for plan in plans},
    }
    text = json.dumps(plan, sort_keys=True)
    return {**source, "plan_sha256": hashlib.sha256(text.encode("utf-8")).hexdigest()}


def _pack_own_part(
    request: PackRequest,
    plans: Sequence[_SplitPlan],
    work: WorkFolder,
    classes: ClassTable,
    on_total: Callable[[int], None],
    on_samples: Callable[[int], None],
) -> None:
    number, num_parts = request.part
    mine = [
        (plan, index)
        for plan in plans
        for index in range(len(plan.parts))
        if index % num_parts == number
    ]
    on_total(sum(len(plan.parts[index]) for plan, index in mine))
    waiting = []
    for plan, index in mine:
        if work.finished(plan.shard_name(index), with_checksum=True) is None:
            waiting.append((plan, index))
        else:
            on_samples(len(plan.parts[index]))
    num_samples = sum(len(plan.parts[index]) for plan, index in waiting)
    num_workers = min(request.num_workers, len(waiting), num_samples // MIN_SAMPLES_PER_WORKER)
    sizes = {plan.shard_name(index): len(plan.parts[index]) for plan, index in waiting}
    for packed in pack_shards(
        work, _jobs(waiting), classes, request.protection, num_workers=num_workers
    ):
        on_samples(sizes[packed.info.file])


def _jobs(waiting: Sequence[tuple[_SplitPlan, int]]) -> Iterator[ShardJob]:
    for plan, index in waiting:
        yield ShardJob(
            name=plan.shard_name(index),
            records=tuple(plan.split.records[row] for row in plan.parts[index]),
            is_complete=plan.split.is_complete,
        )


def _finish(
    request: PackRequest,
    plans: Sequence[_SplitPlan],
    work: WorkFolder,
    classes: ClassTable,
    source: dict[str, Any],
) -> Manifest | None:
    indices: dict[str, ndarray] = {}
    infos: dict[str, SplitInfo] = {}
    for plan in plans:
        names = [plan.shard_name(index) for index in range(len(plan.parts))]
        found = [work.finished(name, with_checksum=False) for name in names]
        shards = [shard for shard in found if shard is not None]
        if len(shards) < len(names):
            return None
        rows = _joined_rows([shard.rows for shard in shards])
        if len(rows) == 0:
            work.discard()
            raise DataError(
                f"{request.source['root']}: none of the {len(plan.split)} images of split "
                f"{plan.name!r} can be used; they are missing, damaged or protected."
            )
        infos[plan.name] = _split_info(plan, shards, rows, classes)
        indices[f"{plan.name}.index.npy"] = rows
    manifest = Manifest(
        names=tuple(category.prompt for category in classes.categories),
        is_thing=tuple(category.is_thing for category in classes.categories),
        source=source,
        splits=infos,
        licence=request.licence,
        protect={images.name: images.summary() for images in request.protection.sets},
        filter_sha256=request.protection.sha256(),
    )
    work.finish(manifest, indices)
    return manifest


def _joined_rows(parts: list[ndarray]) -> ndarray:
    key_length = max(part.dtype["key"].itemsize for part in parts)
    joined = np.concatenate([part.astype(index_dtype(key_length)) for part in parts])
    joined["shard"] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    keys, counts = np.unique(joined["key"], return_counts=True)
    if (counts > 1).any():
        raise DataError(f"sample keys must be unique; repeated: {keys[counts > 1][:8].tolist()}.")
    return joined


def _split_info(
    plan: _SplitPlan, shards: list[PackedShard], rows: ndarray, classes: ClassTable
) -> SplitInfo:
    histogram: Counter[int] = sum((shard.histogram for shard in shards), Counter())
    counts: Counter[str] = sum((shard.counts for shard in shards), Counter())
    index = io.BytesIO()
    np.save(index, rows)
    return SplitInfo(
        num_samples=len(rows),
        index=f"{plan.name}.index.npy",
        index_sha256=hashlib.sha256(index.getvalue()).hexdigest(),
        counts={
            "images": len(rows),
            "panoptic_images": counts["images_with_panoptic"],
            "segments": int(np.maximum(rows["num_segments"], 0).sum()),
            "instances": int(rows["num_instances"].sum()),
            "captioned_images": int((rows["num_captions"] > 0).sum()),
            "captions": int(rows["num_captions"].sum()),
            "referred_images": int((rows["num_sentences"] > 0).sum()),
            "sentences": int(rows["num_sentences"].sum()),
            **dict(sorted(counts.items())),
        },
        class_histogram={
            category.prompt: histogram[index] for index, category in enumerate(classes.categories)
        },
        shards=tuple(shard.info for shard in shards),
        removed=(*plan.removed, *(sample for shard in shards for sample in shard.removed)),
    )
