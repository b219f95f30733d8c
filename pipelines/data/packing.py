"""A COCO-format folder as shards: JPEG as given, panoptic PNG, and one JSON per sample.

The JSON of a sample:
    image_id, file_name, size_hw
    segments   [[id in the PNG, class id, is crowd], ...] or null without panoptic annotation
    instances  [{id, class_id, is_crowd, rle}, ...] or null
    captions   [text, ...]
    regions    [{instance_id, class_id, rle, sentences: [{text, kind}, ...]}, ...]
`rle` is the `counts` string of compressed RLE at `size_hw`.
"""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import Image
from webdataset import TarWriter

from pipelines.data.atomic_folder import atomic_folder
from pipelines.data.coco import Category, CocoFolder, CocoRecord, CocoSplit, encode_rle
from pipelines.data.shards import (
    Manifest,
    ShardInfo,
    SplitInfo,
    file_sha256,
    index_dtype,
    write_manifest,
)
from pipelines.errors import DataError

# samples of one shard come from all over the data set, whatever its order was
_PACKING_SEED = 20221221
# starting a process takes about as long as packing this many
_MIN_SAMPLES_PER_WORKER = 2000


@dataclass(frozen=True, kw_only=True)
class _Vocabulary:
    categories: tuple[Category, ...]
    class_ids: dict[int, int]

    def class_id(self, category_id: int, path: Path) -> int:
        if category_id not in self.class_ids:
            raise DataError(
                f"{path}: category_id must be one of the {len(self.class_ids)} listed categories; "
                f"got {category_id}."
            )
        return self.class_ids[category_id]


@dataclass(frozen=True, kw_only=True)
class _PackedShard:
    info: ShardInfo
    rows: ndarray
    histogram: Counter[int]


def pack_coco(
    root: Path,
    out: Path,
    splits: Sequence[str],
    *,
    refs_name: str | None = None,
    shard_bytes: int = 32 << 20,
    num_workers: int = 1,
    on_total: Callable[[int], None] = lambda num_samples: None,
    on_samples: Callable[[int], None] = lambda num_samples: None,
) -> Manifest:
    """The manifest of the shards that it writes, the folder complete or absent.

    Raises:
        DataError: an annotation file or image is missing or contradicts another, or `out` is used.
    """
    folder = CocoFolder(root, refs_name=refs_name)
    read = {name: folder.split(name) for name in splits}
    vocabulary = _vocabulary(root, list(read.values()))
    on_total(sum(len(split) for split in read.values()))
    with atomic_folder(out) as partial_folder:
        infos = {
            name: _pack_split(
                partial_folder, name, split, vocabulary, shard_bytes, num_workers, on_samples
            )
            for name, split in read.items()
        }
        manifest = Manifest(
            names=tuple(category.prompt for category in vocabulary.categories),
            is_thing=tuple(category.is_thing for category in vocabulary.categories),
            source=_source(root, read),
            splits=infos,
        )
        write_manifest(partial_folder, manifest)
    return manifest


def _vocabulary(root: Path, splits: list[CocoSplit]) -> _Vocabulary:
    lists = {split.panoptic_categories or split.instance_categories for split in splits}
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
    class_ids = {category.id: index for index, category in enumerate(categories)}
    return _Vocabulary(categories=categories, class_ids=class_ids)


def _source(root: Path, splits: dict[str, CocoSplit]) -> dict[str, Any]:
    files = {path for split in splits.values() for path in split.annotation_files}
    return {
        "kind": "coco",
        "root": root.name,
        "annotation_sha256": {
            str(path.relative_to(root)): file_sha256(path) for path in sorted(files)
        },
    }


def _pack_split(
    folder: Path,
    name: str,
    split: CocoSplit,
    vocabulary: _Vocabulary,
    shard_bytes: int,
    num_workers: int,
    on_samples: Callable[[int], None],
) -> SplitInfo:
    parts = _parts(split.records, shard_bytes)
    jobs = [(f"{name}-{number:06d}.tar", part) for number, part in enumerate(parts)]
    packed = []
    for shard in _mapped(partial(_pack_shard, folder, vocabulary), jobs, num_workers):
        packed.append(shard)
        on_samples(shard.info.num_samples)
    index_name = f"{name}.index.npy"
    rows = _joined_rows([shard.rows for shard in packed])
    np.save(folder / index_name, rows)
    histogram: Counter[int] = sum((shard.histogram for shard in packed), Counter())
    return SplitInfo(
        num_samples=len(rows),
        index=index_name,
        index_sha256=file_sha256(folder / index_name),
        counts={
            "images": len(rows),
            "panoptic_images": int((rows["num_segments"] >= 0).sum()),
            "segments": int(np.maximum(rows["num_segments"], 0).sum()),
            "instances": int(rows["num_instances"].sum()),
            "captioned_images": int((rows["num_captions"] > 0).sum()),
            "captions": int(rows["num_captions"].sum()),
            "referred_images": int((rows["num_sentences"] > 0).sum()),
            "sentences": int(rows["num_sentences"].sum()),
        },
        class_histogram={
            category.prompt: histogram[index]
            for index, category in enumerate(vocabulary.categories)
        },
        shards=tuple(shard.info for shard in packed),
    )


def _parts(records: Sequence[CocoRecord], shard_bytes: int) -> list[list[CocoRecord]]:
    seen: set[str] = set()
    for record in records:
        key = record.image_path.stem
        if "." in key or key in seen:
            raise DataError(
                f"{record.image_path}: file names without their ending are sample keys and must "
                f"be unique and free of dots; got {key!r}."
            )
        seen.add(key)
        if not record.image_path.exists():
            raise DataError(f"{record.image_path}: image {record.image_id} is listed, not there.")
    total = sum(record.image_path.stat().st_size for record in records)
    num_shards = max(1, min(len(records), round(total / shard_bytes)))
    order = np.random.default_rng(_PACKING_SEED).permutation(len(records))
    return [[records[i] for i in part] for part in np.array_split(order, num_shards)]


def _mapped(
    function: Callable[[tuple[str, list[CocoRecord]]], _PackedShard],
    jobs: list[tuple[str, list[CocoRecord]]],
    num_workers: int,
) -> Iterator[_PackedShard]:
    num_samples = sum(len(part) for _, part in jobs)
    num_workers = min(num_workers, len(jobs), num_samples // _MIN_SAMPLES_PER_WORKER)
    if num_workers <= 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, jobs)


def _joined_rows(parts: list[ndarray]) -> ndarray:
    key_length = max(part.dtype["key"].itemsize for part in parts)
    joined = np.concatenate([part.astype(index_dtype(key_length)) for part in parts])
    joined["shard"] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return joined


def _pack_shard(
    folder: Path, vocabulary: _Vocabulary, job: tuple[str, list[CocoRecord]]
) -> _PackedShard:
    name, records = job
    path = folder / name
    rows = np.zeros(len(records), index_dtype(max(len(r.image_path.stem) for r in records)))
    histogram: Counter[int] = Counter()
    # fixed time and owner: the same source gives the same bytes
    with path.open("wb") as file, TarWriter(file, user="", group="", mtime=0) as writer:
        for row, record in zip(rows, records, strict=True):
            sample = _sample(record, vocabulary)
            row["key"] = record.image_path.stem.encode("utf-8")
            row["offset"] = writer.tarstream.offset
            writer.write({"__key__": record.image_path.stem, **_members(record, sample)})
            row["num_bytes"] = writer.tarstream.offset - row["offset"]
            _count(row, sample)
            histogram.update(segment[1] for segment in sample["segments"] or ())
    blob = path.read_bytes()
    for row in rows:
        row["crc32"] = zlib.crc32(blob[row["offset"] : row["offset"] + row["num_bytes"]])
    info = ShardInfo(
        file=name, num_samples=len(records), num_bytes=len(blob), sha256=file_sha256(path)
    )
    return _PackedShard(info=info, rows=rows, histogram=histogram)


def _members(record: CocoRecord, sample: dict[str, Any]) -> dict[str, bytes]:
    jpeg = record.image_path.read_bytes()
    with Image.open(record.image_path) as picture:
        kind, size_hw = picture.format, (picture.height, picture.width)
    if kind != "JPEG" or size_hw != record.size_hw:
        raise DataError(
            f"{record.image_path}: must be a JPEG of height and width {record.size_hw}, as the "
            f"annotations say; got {kind} {size_hw}."
        )
    members = {"jpg": jpeg, "json": json.dumps(sample, separators=(",", ":")).encode("utf-8")}
    if record.panoptic_path is not None:
        if not record.panoptic_path.exists():
            raise DataError(f"{record.panoptic_path}: is listed, not there.")
        members["panoptic.png"] = record.panoptic_path.read_bytes()
    return members


def _sample(record: CocoRecord, vocabulary: _Vocabulary) -> dict[str, Any]:
    path = record.image_path
    segments = None
    if record.segments is not None:
        segments = [
            [segment.id, vocabulary.class_id(segment.category_id, path), int(segment.is_crowd)]
            for segment in record.segments
        ]
    instances = None
    if record.instances is not None:
        instances = [
            {
                "id": instance.id,
                "class_id": vocabulary.class_id(instance.category_id, path),
                "is_crowd": int(instance.is_crowd),
                "rle": encode_rle(instance.segmentation, record.size_hw)["counts"],
            }
            for instance in record.instances
        ]
    regions = [
        {
            "instance_id": region.instance.id,
            "class_id": vocabulary.class_id(region.instance.category_id, path),
            "rle": encode_rle(region.instance.segmentation, record.size_hw)["counts"],
            "sentences": [{"text": s.text, "kind": s.kind} for s in region.sentences],
        }
        for region in record.refs
    ]
    return {
        "image_id": record.image_id,
        "file_name": path.name,
        "size_hw": record.size_hw,
        "segments": segments,
        "instances": instances,
        "captions": list(record.captions or ()),
        "regions": regions,
    }


def _count(row: np.void, sample: dict[str, Any]) -> None:
    segments, instances = sample["segments"], sample["instances"]
    row["num_segments"] = -1 if segments is None else len(segments)
    row["num_instances"] = len(instances or ())
    row["num_captions"] = len(sample["captions"])
    row["num_sentences"] = sum(len(region["sentences"]) for region in sample["regions"])
