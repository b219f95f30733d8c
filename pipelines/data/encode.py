"""A record as the members of its sample; the opposite of `decode.py`.

The JSON of a sample:
    image_id, file_name, size_hw
    annotation panoptic, semantic or things: what its segments come from; without segments masks or
               boxes: what its instances are; or none
    segments   [[id in the PNG, class id, is crowd], ...] or null without any
    instances  [{id, class_id, is_crowd, rle, bbox}, ...] or null; rle is null for a box only
    captions   [text, ...]
    regions    [{instance_id, class_id, rle, sentences: [{text, kind}, ...]}, ...]
`rle` is the `counts` string of compressed RLE at `size_hw`, `bbox` is [x, y, width, height] in
pixels. A semantic map has one segment for each class, so its classes are stuff; instances without a
panoptic picture are things in front of each other, and what they leave is unlabelled.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.data.coco import encode_rle
from pipelines.data.label_maps import LabelledSegment, SegmentMap, paint_instances, read_label_map
from pipelines.data.records import (
    UNKNOWN_SIZE_HW,
    Category,
    CocoRecord,
    Instance,
    ReferredRegion,
)
from pipelines.errors import DataError

# of pictures that are not JPEG: no visible loss, and colour at full resolution
_JPEG_QUALITY, _JPEG_SUBSAMPLING = 95, 0
_SEMANTIC_CODES = {"index", "mat", "ade_rgb"}
_JPEG_SUFFIXES = {".jpg", ".jpeg"}
# what every JPEG decoder turns into RGB in the same way
_PLAIN_MODES = {"RGB", "L"}

SizeHW = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """The classes of a folder of shards; a class id is a place in `categories`."""

    categories: tuple[Category, ...]
    class_ids: dict[int, int]
    paints_instances: bool = False

    def class_id(self, category_id: int, path: Path) -> int:
        """The class of a category.

        Raises:
            DataError: the category is not listed; the message names the image.
        """
        if category_id not in self.class_ids:
            raise DataError(
                f"{path}: category_id must be one of the {len(self.class_ids)} listed categories; "
                f"got {category_id}."
            )
        return self.class_ids[category_id]


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """The members of a sample by extension, and its JSON as a document."""

    members: dict[str, bytes]
    document: dict[str, Any]
    is_transcoded: bool


class UnusableImage(DataError):
    """An image that is not there or cannot be opened; lists from the web have many."""


def read_image(record: CocoRecord) -> bytes:
    """The bytes of the image file.

    Raises:
        UnusableImage: it is not there.
    """
    try:
        with record.image_path.open("rb") as file:
            if record.image_range is None:
                return file.read()
            file.seek(record.image_range[0])
            return file.read(record.image_range[1])
    except FileNotFoundError as error:
        raise UnusableImage(
            f"{record.image_path}: image {record.image_id} is listed, not there."
        ) from error


def encode_record(
    record: CocoRecord, image: bytes, classes: ClassTable, *, must_decode: bool = False
) -> EncodedSample:
    """The sample of a record whose image has these bytes.

    must_decode: open the whole image, not only its header.

    Raises:
        UnusableImage: the image cannot be opened.
        DataError: the image or a label map contradicts the annotations.
    """
    jpeg, size_hw = _as_jpeg(record, image, must_decode=must_decode)
    members, kind, segments = _segments(record, size_hw, classes)
    path = record.image_path
    document = {
        "image_id": record.image_id,
        "file_name": path.name if record.image_range is None else record.sample_key,
        "size_hw": size_hw,
        "annotation": kind,
        "segments": segments,
        "instances": _instances(record, size_hw, classes),
        "captions": list(record.captions or ()),
        "regions": [_region(region, path, size_hw, classes) for region in record.refs],
    }
    text = json.dumps(document, separators=(",", ":")).encode("utf-8")
    return EncodedSample(
        members={"jpg": jpeg, "json": text, **members},
        document=document,
        is_transcoded=jpeg is not image,
    )


def _as_jpeg(record: CocoRecord, image: bytes, *, must_decode: bool) -> tuple[bytes, SizeHW]:
    path = record.image_path
    try:
        with Image.open(io.BytesIO(image)) as picture:
            kind, size_hw = picture.format, (picture.height, picture.width)
            is_plain = kind == "JPEG" and picture.mode in _PLAIN_MODES
            is_named_jpeg = path.suffix.lower() in _JPEG_SUFFIXES
            if is_named_jpeg and not must_decode:
                _check_image(record, kind, size_hw)
            if must_decode or not is_plain:
                picture.load()
            return (image if is_plain else _transcoded(picture)), _checked_size(record, size_hw)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise UnusableImage(f"{path}: cannot be opened as a picture ({error}).") from error


def _check_image(record: CocoRecord, kind: str | None, size_hw: SizeHW) -> None:
    if kind != "JPEG" or record.size_hw not in (size_hw, UNKNOWN_SIZE_HW):
        raise DataError(
            f"{record.image_path}: must be a JPEG of height and width {record.size_hw}, as the "
            f"annotations say; got {kind} {size_hw}."
        )


def _checked_size(record: CocoRecord, size_hw: SizeHW) -> SizeHW:
    if record.size_hw not in (size_hw, UNKNOWN_SIZE_HW):
        raise DataError(
            f"{record.image_path}: must have height and width {record.size_hw}, as the annotations "
            f"say; got {size_hw}."
        )
    return size_hw


def _transcoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(
        buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=_JPEG_SUBSAMPLING
    )
    return buffer.getvalue()


def _segments(
    record: CocoRecord, size_hw: SizeHW, classes: ClassTable
) -> tuple[dict[str, bytes], str, list[list[int]] | None]:
    path = record.image_path
    if record.segments is not None and record.panoptic_path is not None:
        if not record.panoptic_path.exists():
            raise DataError(f"{record.panoptic_path}: is listed, not there.")
        segments = [
            LabelledSegment(id=s.id, category_id=s.category_id, is_crowd=s.is_crowd)
            for s in record.segments
        ]
        png = record.panoptic_path.read_bytes()
        return {"panoptic.png": png}, "panoptic", _rows(segments, path, classes)
    if record.label_map is not None:
        found, kind = _read_label_map(record, size_hw)
    elif classes.paints_instances and any(i.segmentation for i in record.instances or ()):
        found, kind = paint_instances(record.instances or (), size_hw), "things"
    else:
        return {}, _kind_without_segments(record), None
    return {"panoptic.png": found.png()}, kind, _rows(found.segments, path, classes)


def _kind_without_segments(record: CocoRecord) -> str:
    if not record.instances:
        return "none"
    return "masks" if any(i.segmentation for i in record.instances) else "boxes"


def _read_label_map(record: CocoRecord, size_hw: SizeHW) -> tuple[SegmentMap, str]:
    assert record.label_map is not None
    found = read_label_map(record.label_map)
    if found.ids.shape != size_hw:
        raise DataError(
            f"{record.label_map.path}: must have the height and width of {record.image_path.name}, "
            f"{size_hw}; got {found.ids.shape}."
        )
    code = record.label_map.code
    kind = "things" if code == "class_and_object" else "panoptic"
    return found, "semantic" if code in _SEMANTIC_CODES else kind


def _rows(segments: Sequence[LabelledSegment], path: Path, classes: ClassTable) -> list[list[int]]:
    return [[s.id, classes.class_id(s.category_id, path), int(s.is_crowd)] for s in segments]


def _instances(
    record: CocoRecord, size_hw: SizeHW, classes: ClassTable
) -> list[dict[str, Any]] | None:
    if record.instances is None:
        return None
    return [
        {
            "id": instance.id,
            "class_id": classes.class_id(instance.category_id, record.image_path),
            "is_crowd": int(instance.is_crowd),
            "rle": _rle(instance, size_hw),
            "bbox": instance.bbox_xywh_px,
        }
        for instance in record.instances
    ]


def _region(
    region: ReferredRegion, path: Path, size_hw: SizeHW, classes: ClassTable
) -> dict[str, Any]:
    return {
        "instance_id": region.instance.id,
        "class_id": classes.class_id(region.instance.category_id, path),
        "rle": _rle(region.instance, size_hw),
        "sentences": [{"text": s.text, "kind": s.kind} for s in region.sentences],
    }


def _rle(instance: Instance, size_hw: SizeHW) -> str | None:
    if not instance.segmentation:
        return None
    return encode_rle(instance.segmentation, size_hw)["counts"]
