"""The members of a sample as arrays; only what is asked for is decoded, after a look at its size.

A JPEG is decoded whole by torchvision, or at 1/2, 1/4 or 1/8 by Pillow where the crop is to shrink
by more than that: libjpeg then leaves out most of the inverse transform.
"""

import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int32, UInt8
from numpy import ndarray
from PIL import Image
from pycocotools import mask as rle_codec
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from pipelines.data.shards import RawSample
from pipelines.errors import DamagedSampleError

# more than any data set that we know has in an image, and far less than fills the memory
MAX_PIXELS = 64 * 10**6
_FORMATS = {"jpg": "JPEG", "panoptic.png": "PNG"}
# what libraries raise on bytes that they do not understand
_DECODING_ERRORS = (
    OSError, RuntimeError, SyntaxError, ValueError, TypeError, LookupError, AttributeError,
    EOFError, ArithmeticError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Region:
    """A region, still as RLE, and what is said about it."""

    class_id: int
    rle: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LabelledBox:
    """A box of one thing: [left, top, width, height] in pixels of the source, unchecked."""

    class_id: int
    is_crowd: bool
    bbox_xywh_px: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The JSON of a sample; `segments` holds (id in the PNG, class id, is crowd)."""

    size_hw: tuple[int, int]
    segments: tuple[tuple[int, int, int], ...] | None
    captions: tuple[str, ...]
    regions: tuple[Region, ...]
    boxes: tuple[LabelledBox, ...] = ()


def decode_annotations(sample: RawSample, *, with_boxes: bool = False) -> Annotations:
    """What is known about a sample; boxes, those of masks among them, only where they are wanted.

    Raises:
        DamagedSampleError: the JSON is damaged, lacks a field, or speaks of too large an image.
    """
    data = sample.member("json")
    annotations = _guarded(sample, "json", lambda: _annotations(json.loads(data), with_boxes))
    height, width = annotations.size_hw
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise DamagedSampleError(
            sample.shard,
            sample.key,
            f"must be an image of 1 to {MAX_PIXELS} pixels; its JSON says {height} x {width}. "
            "Make it smaller and prepare again.",
        )
    return annotations


def decode_image(
    sample: RawSample, annotations: Annotations, denominator: int = 1
) -> UInt8[ndarray, "h w 3"]:
    """RGB, 0..255; with a denominator of 2, 4 or 8, every side divided by it and rounded up.

    Raises:
        DamagedSampleError: not a JPEG, or not of the annotated size.
    """
    data = sample.member("jpg")
    picture = _opened(sample, "jpg", data, annotations.size_hw)
    if denominator > 1:
        return _guarded(sample, "jpg", lambda: _scaled(picture, denominator))
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    image = _guarded(sample, "jpg", lambda: decode_jpeg(tensor, mode=ImageReadMode.RGB))
    return image.permute(1, 2, 0).numpy()  # [h, w, 3]


def decode_segment_ids(sample: RawSample, annotations: Annotations) -> Int32[ndarray, "h w"]:
    """Segment ids, R + 256 G + 65536 B; 0 is unlabelled.

    Raises:
        DamagedSampleError: not a PNG, or not of the annotated size.
    """
    data = sample.member("panoptic.png")
    _opened(sample, "panoptic.png", data, annotations.size_hw)
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    # four bytes are one little-endian number, of which the opaque fourth is cut off
    pixels = _guarded(
        sample, "panoptic.png", lambda: decode_png(tensor, mode=ImageReadMode.RGB_ALPHA)
    )
    four = pixels.permute(1, 2, 0).numpy()  # [h, w, 4]
    ids = np.ascontiguousarray(four).view("<i4")[:, :, 0]  # [h, w]
    return np.bitwise_and(ids, 0xFFFFFF, out=ids)


def decode_region(
    sample: RawSample, region: Region, annotations: Annotations
) -> Bool[ndarray, "h w"]:
    """True inside a region; columns lie together in memory.

    Raises:
        DamagedSampleError: the RLE does not decode to the annotated size.
    """
    rle: Any = {"size": list(annotations.size_hw), "counts": region.rle}
    mask = _guarded(sample, "json", lambda: rle_codec.decode(rle))  # [h, w]
    return mask.view(bool)


def _annotations(document: dict[str, Any], with_boxes: bool) -> Annotations:
    height, width = document["size_hw"]
    return Annotations(
        size_hw=(int(height), int(width)),
        segments=_segments(document["segments"]),
        captions=tuple(str(caption) for caption in document["captions"]),
        # a region that is only a box has no mask to find
        regions=tuple(_region(entry) for entry in document["regions"] if entry["rle"] is not None),
        boxes=tuple(map(_box, document["instances"] or ())) if with_boxes else (),
    )


def _segments(entries: list[list[int]] | None) -> tuple[tuple[int, int, int], ...] | None:
    if entries is None:
        return None
    return tuple((int(entry[0]), int(entry[1]), int(entry[2])) for entry in entries)


def _box(entry: dict[str, Any]) -> LabelledBox:
    return LabelledBox(
        class_id=int(entry["class_id"]),
        is_crowd=bool(entry["is_crowd"]),
        bbox_xywh_px=tuple(float(value) for value in entry["bbox"]),
    )


def _region(entry: dict[str, Any]) -> Region:
    return Region(
        class_id=int(entry["class_id"]),
        rle=str(entry["rle"]),
        # the same words twice about one region are one phrase
        sentences=tuple(dict.fromkeys(str(s["text"]) for s in entry["sentences"])),
    )


def _opened(
    sample: RawSample, extension: str, data: bytes, size_hw: tuple[int, int]
) -> Image.Image:
    """The picture behind its header, which is all that has been read of it."""
    kind = _FORMATS[extension]
    picture = _guarded(sample, extension, lambda: Image.open(io.BytesIO(data), formats=(kind,)))
    found = (picture.height, picture.width)
    if found != size_hw:
        raise DamagedSampleError(
            sample.shard,
            sample.key,
            f": {extension} must have height and width {size_hw}, as its JSON says; got {found}. "
            "Prepare again.",
        )
    return picture


def _scaled(picture: Image.Image, denominator: int) -> UInt8[ndarray, "h w 3"]:
    if picture.mode not in ("RGB", "L"):
        # inks have no scaled decoder
        return np.array(picture.convert("RGB").reduce(denominator))
    picture.draft(picture.mode, (picture.width // denominator, picture.height // denominator))
    return np.array(picture.convert("RGB"))


def _guarded(sample: RawSample, extension: str, decode: Callable[[], _Result]) -> _Result:
    try:
        return decode()
    except _DECODING_ERRORS as error:
        raise DamagedSampleError(
            sample.shard, sample.key, f": {extension} cannot be decoded ({error}). Prepare again."
        ) from error
