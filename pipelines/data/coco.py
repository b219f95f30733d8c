"""A folder in COCO's own layout, as records: image, segments, instances, captions, phrases.

    root/images/<split>/*.jpg
    root/annotations/{panoptic,instances,captions}_<split>.json   each may be absent
    root/annotations/panoptic_<split>/*.png                       id = R + 256 G + 65536 B
    root/refs/instances.json, root/refs/refs(<name>).p            REFER's two files

Ids stay what the files say. An annotation kind that a split does not have is `None` in every
record; an image which that kind's file does not list is `None` in that record.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Int32
from numpy import ndarray
from PIL import Image
from pycocotools import mask as rle_codec

from pipelines.data.refer import Sentence, read_references
from pipelines.errors import DataError

T = TypeVar("T")
Segmentation = dict[str, Any] | list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Category:
    """A class; `name` is the file's, `prompt` is what a text encoder should read."""

    id: int
    name: str
    is_thing: bool
    supercategory: str = ""

    @property
    def prompt(self) -> str:
        """The name without COCO's bookkeeping: `floor-other-merged` becomes `floor`.

        Source: microsoft/X-Decoder utils/prompt_engineering.py
        """
        name = self.name
        for suffix in ("-other", "-merged", "-stuff"):
            name = name.replace(suffix, "")
        return name


@dataclass(frozen=True, kw_only=True)
class PanopticSegment:
    """One entry of `segments_info`; `id` is its value in the panoptic PNG."""

    id: int
    category_id: int
    area: int
    is_crowd: bool
    bbox_xywh_px: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One annotation of an instances file; `segmentation` is polygons or RLE, as in the file."""

    id: int
    category_id: int
    segmentation: Segmentation
    area: float
    is_crowd: bool
    bbox_xywh_px: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ReferredRegion:
    """A region with the sentences that refer to it."""

    ref_id: int
    instance: Instance
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True, kw_only=True)
class CocoRecord:
    """All that is known about one image; `None` marks a kind of annotation that is absent."""

    image_id: int
    image_path: Path
    size_hw: tuple[int, int]
    panoptic_path: Path | None
    segments: tuple[PanopticSegment, ...] | None
    instances: tuple[Instance, ...] | None
    captions: tuple[str, ...] | None
    refs: tuple[ReferredRegion, ...]


@dataclass(frozen=True, kw_only=True)
class CocoSplit:
    """The records of one split, ordered by image id, with the classes that they use."""

    name: str
    records: tuple[CocoRecord, ...]
    panoptic_categories: tuple[Category, ...]
    instance_categories: tuple[Category, ...]
    annotation_files: tuple[Path, ...]

    def __iter__(self) -> Iterator[CocoRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


class CocoFolder:
    """A COCO-format root; `split` reads one split of it.

    refs_name: which `refs/refs(<name>).p` to read; needed only where there are several.
    """

    def __init__(self, root: str | Path, *, refs_name: str | None = None) -> None:
        self.root = Path(root)
        self.refs_name = refs_name
        if not self.root.is_dir():
            raise DataError(
                f"CocoFolder: root must be a folder; got {self.root}. "
                "`python -m pipelines.prepare scenes --out DIR` makes one."
            )

    def split_names(self) -> tuple[str, ...]:
        """The folders under `images`."""
        entries = (self.root / "images").glob("*")
        return tuple(sorted(entry.name for entry in entries if entry.is_dir()))

    def resolve_split(self, name: str) -> str:
        """`name` itself, or the only split that is `name` and a year (`train` -> `train2017`)."""
        names = self.split_names()
        matches = [name] if name in names else [n for n in names if _without_year(n) == name]
        if len(matches) != 1:
            raise DataError(
                f"{self.root}: split must be one of {list(names)} (the year may be left out "
                f"where one folder fits); got {name!r}."
            )
        return matches[0]

    def split(self, name: str) -> CocoSplit:
        """All records of a split; annotation files are read, images are not.

        Raises:
            DataError: the split has no folder or no annotations, or a file is damaged.
        """
        split = self.resolve_split(name)
        folder = self.root / "annotations"
        paths = {kind: folder / f"{kind}_{split}.json" for kind in _KINDS}
        paths = {kind: path for kind, path in paths.items() if path.exists()}
        if not paths:
            expected = ", ".join(f"{kind}_{split}.json" for kind in _KINDS)
            raise DataError(f"{folder}: must hold at least one of {expected}; found none.")
        documents = {kind: _Document.read(path) for kind, path in paths.items()}
        refs_path = self._refs_path()
        refs = _read_refs(self.root, refs_path, split) if refs_path else {}
        return CocoSplit(
            name=split,
            records=_records(self.root, split, documents, refs),
            panoptic_categories=_categories(documents.get("panoptic")),
            instance_categories=_categories(documents.get("instances")),
            annotation_files=(*paths.values(), *((refs_path,) if refs_path else ())),
        )

    def _refs_path(self) -> Path | None:
        found = {path.name[5:-3]: path for path in sorted((self.root / "refs").glob("refs(*).p"))}
        if self.refs_name is not None:
            if self.refs_name not in found:
                raise DataError(
                    f"{self.root}/refs: refs_name must be one of {list(found)}; "
                    f"got {self.refs_name!r}."
                )
            return found[self.refs_name]
        if len(found) > 1:
            raise DataError(
                f"{self.root}/refs: holds several reference lists {list(found)}; "
                "say which one with refs_name."
            )
        return next(iter(found.values()), None)


def decode_mask(segmentation: Segmentation, size_hw: tuple[int, int]) -> Bool[ndarray, "h w"]:
    """The region that polygons or RLE (compressed or not) describe, at the image's own size."""
    return rle_codec.decode(encode_rle(segmentation, size_hw)).view(bool)  # [h, w]


def encode_rle(segmentation: Segmentation, size_hw: tuple[int, int]) -> dict[str, Any]:
    """Compressed RLE of a region, `counts` as a string so that JSON can hold it."""
    height, width = size_hw
    if isinstance(segmentation, list):
        rle = rle_codec.merge(rle_codec.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = rle_codec.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [height, width], "counts": text}


def read_segment_ids(path: Path) -> Int32[ndarray, "h w"]:
    """Segment ids of a panoptic PNG; 0 is unlabelled.

    Raises:
        DataError: the file is missing or is not an 8-bit RGB picture.
    """
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not a readable panoptic PNG ({error}).") from error
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise DataError(
            f"{path}: a panoptic PNG must be 8-bit RGB [h, w, 3]; "
            f"got {pixels.dtype} {list(pixels.shape)}."
        )
    return pixels.astype(np.int32) @ np.array([1, 256, 65536], np.int32)  # [h, w]


_KINDS = ("panoptic", "instances", "captions")


def _without_year(split: str) -> str:
    return split.rstrip("0123456789")


@dataclass(frozen=True, kw_only=True)
class _Document:
    path: Path
    images: dict[int, dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    categories: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "_Document":
        document = _load_json(path)
        annotations: dict[int, list[dict[str, Any]]] = {}
        try:
            for entry in document["annotations"]:
                annotations.setdefault(entry["image_id"], []).append(entry)
            images = {image["id"]: image for image in document["images"]}
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}: needs `images` with `id` and `annotations` with `image_id`; "
                f"got {error!r}."
            ) from error
        return cls(
            path=path,
            images=images,
            annotations=annotations,
            categories=document.get("categories", []),
        )

    def parsed(self, image_id: int, build: Callable[[dict[str, Any]], T]) -> tuple[T, ...] | None:
        if image_id not in self.images:
            return None
        return tuple(
            _parsed(self.path, entry, build) for entry in self.annotations.get(image_id, ())
        )


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error}).") from error


def _parsed(path: Path, entry: dict[str, Any], build: Callable[[dict[str, Any]], T]) -> T:
    try:
        return build(entry)
    except (KeyError, TypeError, ValueError) as error:
        name = entry.get("id", entry.get("image_id"))
        raise DataError(
            f"{path}: annotation {name} lacks or misuses a field ({error!r})."
        ) from error


def _segments(entry: dict[str, Any]) -> tuple[str, tuple[PanopticSegment, ...]]:
    segments = tuple(
        PanopticSegment(
            id=int(segment["id"]),
            category_id=int(segment["category_id"]),
            area=int(segment["area"]),
            is_crowd=bool(segment.get("iscrowd", 0)),
            bbox_xywh_px=tuple(segment["bbox"]),
        )
        for segment in entry["segments_info"]
    )
    return str(entry["file_name"]), segments


def _instance(entry: dict[str, Any]) -> Instance:
    if not isinstance(entry["segmentation"], list | dict):
        raise TypeError("segmentation must be polygons or RLE")
    return Instance(
        id=int(entry["id"]),
        category_id=int(entry["category_id"]),
        segmentation=entry["segmentation"],
        area=float(entry["area"]),
        is_crowd=bool(entry.get("iscrowd", 0)),
        bbox_xywh_px=tuple(entry["bbox"]),
    )


def _caption(entry: dict[str, Any]) -> str:
    return str(entry["caption"]).strip()


def _categories(document: _Document | None) -> tuple[Category, ...]:
    if document is None:
        return ()
    return tuple(
        Category(
            id=int(entry["id"]),
            name=str(entry["name"]),
            is_thing=bool(entry.get("isthing", 1)),
            supercategory=str(entry.get("supercategory", "")),
        )
        for entry in document.categories
    )


def _read_refs(root: Path, path: Path, split: str) -> dict[int, list[ReferredRegion]]:
    wanted = {split, _without_year(split)}
    references = [ref for ref in read_references(path) if ref.split in wanted]
    if not references:
        return {}
    instances_path = root / "refs" / "instances.json"
    entries = {entry["id"]: entry for entry in _load_json(instances_path)["annotations"]}
    regions: dict[int, list[ReferredRegion]] = {}
    for reference in references:
        entry = entries.get(reference.ann_id)
        if entry is None:
            raise DataError(
                f"{instances_path}: must hold annotation {reference.ann_id} of ref "
                f"{reference.ref_id} in {path.name}; it does not."
            )
        region = ReferredRegion(
            ref_id=reference.ref_id,
            instance=_parsed(instances_path, entry, _instance),
            sentences=reference.sentences,
        )
        regions.setdefault(reference.image_id, []).append(region)
    return regions


def _records(
    root: Path,
    split: str,
    documents: dict[str, _Document],
    refs: dict[int, list[ReferredRegion]],
) -> tuple[CocoRecord, ...]:
    images: dict[int, dict[str, Any]] = {}
    for document in documents.values():
        images.update(document.images)
    records = []
    for image_id in sorted(images):
        image = images[image_id]
        panoptic = _of_image(documents.get("panoptic"), image_id, _segments)
        png, segments = panoptic[0] if panoptic else (None, None)
        records.append(
            CocoRecord(
                image_id=image_id,
                image_path=root / "images" / split / image["file_name"],
                size_hw=(int(image["height"]), int(image["width"])),
                panoptic_path=root / "annotations" / f"panoptic_{split}" / png if png else None,
                segments=segments,
                instances=_of_image(documents.get("instances"), image_id, _instance),
                captions=_of_image(documents.get("captions"), image_id, _caption),
                refs=tuple(refs.get(image_id, ())),
            )
        )
    return tuple(records)


def _of_image(
    document: _Document | None, image_id: int, build: Callable[[dict[str, Any]], T]
) -> tuple[T, ...] | None:
    return document.parsed(image_id, build) if document else None
