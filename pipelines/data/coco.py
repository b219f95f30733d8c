"""A folder in COCO's own layout, as records: image, segments, instances, captions, phrases.

    root/images/<split>/*.jpg, or root/<split>/*.jpg as COCO's archives unpack
    root/annotations/{panoptic,instances,captions}_<split>.json   each may be absent
    root/annotations/panoptic_<split>/*.png                       id = R + 256 G + 65536 B
    root/refs/instances.json, root/refs/refs(<name>).p            REFER's two files

Ids stay what the files say. An annotation kind that a split does not have is `None` in every
record; an image which that kind's file does not list is `None` in that record.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Int32
from numpy import ndarray
from PIL import Image
from pycocotools import mask as rle_codec

from pipelines.data.records import (
    Category,
    CocoRecord,
    CocoSplit,
    Instance,
    PanopticSegment,
    ReferredRegion,
    Segmentation,
)
from pipelines.data.refer import read_references
from pipelines.errors import DataError

T = TypeVar("T")
KINDS = ("panoptic", "instances", "captions")
# COCO's names of images, with and without the split of 2014
_COCO_STEM = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})")
# Flickr's addresses of pictures: the id of the photograph, then a secret
_FLICKR_PHOTO = re.compile(r"flickr\.com/(?:[^?#]*/)?(\d+)_[0-9a-f]+")


class CocoFolder:
    """A COCO-format root; `split` reads one split of it.

    refs_name: which `refs/refs(<name>).p` to read; needed only where there are several.
    refs_folder: where they are instead of `refs`. kinds: the annotation files to read.
    with_refs: read phrases at all.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        refs_name: str | None = None,
        refs_folder: Path | None = None,
        kinds: tuple[str, ...] = KINDS,
        with_refs: bool = True,
    ) -> None:
        self.root = Path(root)
        self.refs_name = refs_name
        self.refs_folder = refs_folder or self.root / "refs"
        self.kinds = kinds
        self.with_refs = with_refs
        if not self.root.is_dir():
            raise DataError(
                f"CocoFolder: root must be a folder; got {self.root}. "
                "`python -m pipelines.prepare scenes --out DIR` makes one."
            )

    def split_names(self) -> tuple[str, ...]:
        """The folders under `images`, or what is annotated, with a folder in the root or alone."""
        entries = {entry.name for entry in (self.root / "images").glob("*") if entry.is_dir()}
        if not entries:
            annotated = {
                path.stem.partition("_")[2]
                for kind in KINDS
                for path in (self.root / "annotations").glob(f"{kind}_*.json")
            }
            # lists may lie alone, to say which images an evaluation set has
            entries = {name for name in annotated if (self.root / name).is_dir()} or annotated
        return tuple(sorted(entries))

    def image_folder(self, split: str) -> Path:
        """Where the images of a split are."""
        folder = self.root / "images" / split
        return folder if folder.is_dir() else self.root / split

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
        paths = {kind: folder / f"{kind}_{split}.json" for kind in self.kinds}
        paths = {kind: path for kind, path in paths.items() if path.exists()}
        if not paths:
            expected = ", ".join(f"{kind}_{split}.json" for kind in self.kinds)
            raise DataError(f"{folder}: must hold at least one of {expected}; found none.")
        documents = {kind: Document.read(path) for kind, path in paths.items()}
        refs_path = self._refs_path() if self.with_refs else None
        refs = read_regions(refs_path, {split, _without_year(split)}) if refs_path else {}
        return CocoSplit(
            name=split,
            records=_records(self.image_folder(split), self._png_folder(split), documents, refs),
            panoptic_categories=parse_categories(documents.get("panoptic")),
            instance_categories=parse_categories(documents.get("instances")),
            annotation_files=(*paths.values(), *_refs_files(refs_path)),
        )

    def _png_folder(self, split: str) -> Path:
        folder = self.root / "annotations" / f"panoptic_{split}"
        beside = self.root / f"panoptic_{split}"
        return beside if beside.is_dir() and not folder.is_dir() else folder

    def _refs_path(self) -> Path | None:
        found = {path.name[5:-3]: path for path in sorted(self.refs_folder.glob("refs(*).p"))}
        if self.refs_name is not None:
            if self.refs_name not in found:
                raise DataError(
                    f"{self.refs_folder}: refs_name must be one of {list(found)}; "
                    f"got {self.refs_name!r}."
                )
            return found[self.refs_name]
        if len(found) > 1:
            raise DataError(
                f"{self.refs_folder}: holds several reference lists {list(found)}; "
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


def coco_identities(file_name: str) -> tuple[str, ...]:
    """The COCO id in a file name, as an identity; none where the name is not COCO's.

    The pictures of 2014 and 2017 are the same under the same id.
    """
    match = _COCO_STEM.fullmatch(Path(file_name).stem)
    return (f"coco:{int(match[1])}",) if match else ()


def flickr_identities(url: str) -> tuple[str, ...]:
    """The id of the photograph at one of Flickr's addresses, as an identity; none elsewhere."""
    match = _FLICKR_PHOTO.search(url)
    return (f"flickr:{int(match[1])}",) if match else ()


def _refs_files(path: Path | None) -> tuple[Path, ...]:
    files = () if path is None else (path, path.parent / "instances.json")
    return tuple(file for file in files if file.exists())


def _without_year(split: str) -> str:
    return split.rstrip("0123456789")


@dataclass(frozen=True, kw_only=True)
class Document:
    """An annotation file of COCO's kind, its annotations by image."""

    path: Path
    images: dict[int, dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    categories: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Document":
        """The file at `path`.

        Raises:
            DataError: it is unreadable or lacks its lists.
        """
        document = load_json(path)
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
        """The annotations of an image as `build` makes them; None for an image not listed.

        Raises:
            DataError: an annotation lacks a field.
        """
        if image_id not in self.images:
            return None
        return tuple(
            _parsed(self.path, entry, build) for entry in self.annotations.get(image_id, ())
        )


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it cannot be read.
    """
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


def parse_instance(entry: dict[str, Any]) -> Instance:
    """One entry of an instances file."""
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


def parse_categories(document: Document | None) -> tuple[Category, ...]:
    """The classes that a file lists, in its order; things unless it says otherwise."""
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


def read_regions(path: Path, splits: set[str]) -> dict[int, list[ReferredRegion]]:
    """The referred regions of REFER's list, by image; `instances.json` lies beside the list.

    Raises:
        DataError: a file is missing or damaged, or the list names an annotation that is not there.
    """
    references = [ref for ref in read_references(path) if ref.split in splits]
    if not references:
        return {}
    instances_path = path.parent / "instances.json"
    entries = {entry["id"]: entry for entry in load_json(instances_path)["annotations"]}
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
            instance=_parsed(instances_path, entry, parse_instance),
            sentences=reference.sentences,
        )
        regions.setdefault(reference.image_id, []).append(region)
    return regions


def _records(
    image_folder: Path,
    png_folder: Path,
    documents: dict[str, Document],
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
                image_path=image_folder / image["file_name"],
                size_hw=(int(image["height"]), int(image["width"])),
                panoptic_path=png_folder / png if png else None,
                segments=segments,
                instances=_of_image(documents.get("instances"), image_id, parse_instance),
                captions=_of_image(documents.get("captions"), image_id, _caption),
                refs=tuple(refs.get(image_id, ())),
                identities=(
                    *coco_identities(image["file_name"]),
                    *flickr_identities(image.get("flickr_url", "")),
                ),
            )
        )
    return tuple(records)


def _of_image(
    document: Document | None, image_id: int, build: Callable[[dict[str, Any]], T]
) -> tuple[T, ...] | None:
    return document.parsed(image_id, build) if document else None
