"""The members of a sample as arrays; only what is asked for is decoded."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int32, UInt8
from numpy import ndarray
from pycocotools import mask as rle_codec
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from pipelines.data.shards import RawSample
from pipelines.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Region:
    """A region, still as RLE, and what is said about it."""

    class_id: int
    rle: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The JSON of a sample; `segments` holds (id in the PNG, class id, is crowd)."""

    size_hw: tuple[int, int]
    segments: tuple[tuple[int, int, int], ...] | None
    captions: tuple[str, ...]
    regions: tuple[Region, ...]


def decode_annotations(sample: RawSample) -> Annotations:
    """What is known about a sample.

    Raises:
        DataError: the JSON is damaged or lacks a field.
    """
    try:
        document = json.loads(sample.member("json"))
        return Annotations(
            size_hw=(int(document["size_hw"][0]), int(document["size_hw"][1])),
            segments=_segments(document["segments"]),
            captions=tuple(document["captions"]),
            regions=tuple(_region(entry) for entry in document["regions"]),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(sample, "json", error) from error


def decode_image(sample: RawSample, annotations: Annotations) -> UInt8[Tensor, "3 h w"]:
    """RGB, 0..255.

    Raises:
        DataError: not a JPEG, or not of the annotated size.
    """
    data = torch.frombuffer(bytearray(sample.member("jpg")), dtype=torch.uint8)
    try:
        image = decode_jpeg(data, mode=ImageReadMode.RGB)  # [3, h, w]
    except RuntimeError as error:
        raise _damaged(sample, "jpg", error) from error
    _check_size(sample, "jpg", tuple(image.shape[1:]), annotations.size_hw)
    return image


def decode_segment_ids(sample: RawSample, annotations: Annotations) -> Int32[ndarray, "h w"]:
    """Segment ids, R + 256 G + 65536 B; 0 is unlabelled.

    Raises:
        DataError: not an RGB PNG, or not of the annotated size.
    """
    data = torch.frombuffer(bytearray(sample.member("panoptic.png")), dtype=torch.uint8)
    try:
        pixels = decode_png(data, mode=ImageReadMode.RGB).numpy()  # [3, h, w]
    except RuntimeError as error:
        raise _damaged(sample, "panoptic.png", error) from error
    _check_size(sample, "panoptic.png", pixels.shape[1:], annotations.size_hw)
    ids = pixels[2].astype(np.int32)
    for plane in (pixels[1], pixels[0]):
        ids = (ids << 8) | plane
    return ids  # [h, w]


def decode_region(
    sample: RawSample, region: Region, annotations: Annotations
) -> Bool[ndarray, "h w"]:
    """True inside a region.

    Raises:
        DataError: the RLE does not decode to the annotated size.
    """
    rle: Any = {"size": list(annotations.size_hw), "counts": region.rle}
    try:
        mask = rle_codec.decode(rle)  # [h, w]
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(sample, "json", error) from error
    return mask.view(bool)


def _segments(entries: list[list[int]] | None) -> tuple[tuple[int, int, int], ...] | None:
    if entries is None:
        return None
    return tuple((int(entry[0]), int(entry[1]), int(entry[2])) for entry in entries)


def _region(entry: dict[str, Any]) -> Region:
    return Region(
        class_id=int(entry["class_id"]),
        rle=str(entry["rle"]),
        # the same words twice about one region are one phrase
        sentences=tuple(dict.fromkeys(str(s["text"]) for s in entry["sentences"])),
    )


def _check_size(
    sample: RawSample, extension: str, found: tuple[int, ...], size_hw: tuple[int, int]
) -> None:
    if found != size_hw:
        raise DataError(
            f"{sample.shard}: sample {sample.key}: {extension} must have height and width "
            f"{size_hw}, as its JSON says; got {found}. Prepare again."
        )


def _damaged(sample: RawSample, extension: str, error: Exception) -> DataError:
    return DataError(
        f"{sample.shard}: sample {sample.key}: {extension} cannot be decoded ({error}). "
        "Prepare again."
    )
