"""A sample as a worker leaves it: decoded and cropped, and no larger than its source.

Masks travel as one label map of the crop, where each pixel belongs to one segment, and as one mask
per region that a drawn phrase means. `collate.py` makes tensors at the size of the batch of them.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int16, Int32, UInt8
from numpy import ndarray

from pipelines.data.augment import (
    ColourMatrix,
    Geometry,
    draw_colour,
    draw_geometry,
    mirror_text,
    sample_generator,
    shrink_image,
    shrink_labels,
)
from pipelines.data.config import AugmentConfig, ImageTextDataConfig, SegmentationDataConfig
from pipelines.data.decode import (
    Annotations,
    decode_annotations,
    decode_image,
    decode_region,
    decode_segment_ids,
)
from pipelines.data.shards import RawSample
from pipelines.data.step_memory import Plane, StepMemory
from pipelines.errors import DamagedSampleError

_NUM_IDS = 1 << 24


@dataclass(frozen=True, kw_only=True)
class CompactImage:
    """The pixels of a crop, and how they become the image of a batch."""

    pixels: Plane
    geometry: Geometry
    colour: ColourMatrix | None


@dataclass(frozen=True, kw_only=True)
class CompactSegmentation:
    """An image, its segments and phrases.

    labels: which segment a pixel belongs to; of those with numbers in `segments`, `class_ids` has
    the class. regions: one mask for each region that phrases mean; region_of_phrase counts them.
    """

    key: str
    image: CompactImage
    labels: Plane
    segments: tuple[int, ...]
    class_ids: tuple[int, ...]
    phrases: tuple[str, ...]
    region_of_phrase: tuple[int, ...]
    regions: tuple[Plane, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CompactImageText:
    """An image and one of its captions."""

    key: str
    image: CompactImage
    caption: str


def compact_segmentation(
    raw: RawSample,
    config: SegmentationDataConfig,
    memory: StepMemory,
    *,
    seed: int,
    epoch: int,
    num_classes: int,
) -> CompactSegmentation:
    """The sample as this epoch sees it; segments and phrases cropped away are dropped.

    Raises:
        DamagedSampleError: a member of the sample is missing or damaged.
    """
    rng = sample_generator(seed, epoch, "segmentation", raw.key)
    annotations = decode_annotations(raw)
    geometry = draw_geometry(rng, annotations.size_hw, config.size_hw, config.augment)
    image = _image(rng, raw, annotations, geometry, config.augment, memory)
    _check_segments(raw, annotations, num_classes)
    # a crowd is a region of several things: neither a target nor a negative of its own
    entries = [entry for entry in annotations.segments or () if not entry[2]]
    ids = shrink_labels(decode_segment_ids(raw, annotations), geometry)
    labels = _labels(ids, [number for number, _, _ in entries])
    seen = _seen_labels(labels, len(entries))
    drawn = _draw_phrases(rng, raw, annotations, geometry, config.max_phrases)
    numbers = list(dict.fromkeys(number for _, number in drawn.phrases))
    return CompactSegmentation(
        key=raw.key,
        image=image,
        labels=memory.place(labels),
        segments=seen,
        class_ids=tuple(entries[label - 1][1] for label in seen),
        phrases=tuple(text for text, _ in drawn.phrases),
        region_of_phrase=tuple(numbers.index(number) for _, number in drawn.phrases),
        regions=tuple(memory.place(drawn.masks[number]) for number in numbers),
        captions=tuple(mirror_text(text, geometry.is_mirrored) for text in annotations.captions),
    )


def compact_image_text(
    raw: RawSample, config: ImageTextDataConfig, memory: StepMemory, *, seed: int, epoch: int
) -> CompactImageText:
    """The sample as this epoch sees it, with one of its captions.

    Raises:
        DamagedSampleError: a member of the sample is missing or damaged.
    """
    rng = sample_generator(seed, epoch, "image_text", raw.key)
    annotations = decode_annotations(raw)
    if not annotations.captions:
        raise DamagedSampleError(
            raw.shard, raw.key, "must have a caption, as its index says; it has none."
        )
    caption = annotations.captions[int(rng.integers(len(annotations.captions)))]
    geometry = draw_geometry(rng, annotations.size_hw, config.size_hw, config.augment)
    return CompactImageText(
        key=raw.key,
        image=_image(rng, raw, annotations, geometry, config.augment, memory),
        caption=mirror_text(caption, geometry.is_mirrored),
    )


def step_bytes(
    segmentation: SegmentationDataConfig | None,
    image_text: ImageTextDataConfig | None,
    *,
    world_size: int,
) -> int:
    """The most bytes that a rank's step can place; a crop is never larger than its batch."""
    total = 0
    if segmentation is not None:
        pixels = segmentation.size_hw[0] * segmentation.size_hw[1]
        # an image of bytes, labels of two bytes, masks; each place may be rounded up
        one = pixels * (3 + 2 + segmentation.max_phrases) + 8 * (2 + segmentation.max_phrases)
        total += one * (segmentation.batch_size // world_size)
    if image_text is not None:
        one = image_text.size_hw[0] * image_text.size_hw[1] * 3 + 8
        total += one * (image_text.batch_size // world_size)
    return total


def _image(
    rng: np.random.Generator,
    raw: RawSample,
    annotations: Annotations,
    geometry: Geometry,
    augment: AugmentConfig,
    memory: StepMemory,
) -> CompactImage:
    pixels = shrink_image(decode_image(raw, annotations, geometry.denominator), geometry)
    return CompactImage(
        pixels=memory.place(pixels),
        geometry=geometry,
        colour=draw_colour(rng, pixels, augment),
    )


def _labels(
    ids: Int32[ndarray, "h w"], segment_ids: list[int]
) -> UInt8[ndarray, "h w"] | Int16[ndarray, "h w"]:
    """The place of each pixel's id in the list, counted from 1; 0 where it is not in the list."""
    table = _table("uint8" if len(segment_ids) < 256 else "int16")
    places = torch.tensor(segment_ids, dtype=torch.int64)
    table[places] = torch.arange(1, len(segment_ids) + 1).to(table.dtype)
    labels = table.index_select(0, torch.from_numpy(np.ascontiguousarray(ids)).view(-1))
    table[places] = 0
    return labels.numpy().reshape(ids.shape)  # [h, w]


def _check_segments(raw: RawSample, annotations: Annotations, num_classes: int) -> None:
    segments = annotations.segments or ()
    are_ids_valid = all(0 < number < _NUM_IDS for number, _, _ in segments)
    if not are_ids_valid or len({number for number, _, _ in segments}) < len(segments):
        raise DamagedSampleError(
            raw.shard,
            raw.key,
            f"must have segment ids that differ and lie in [1, {_NUM_IDS - 1}]; got "
            f"{[number for number, _, _ in segments][:20]}. Prepare again.",
        )
    wrong = [class_id for _, class_id, _ in segments if not 0 <= class_id < num_classes]
    if wrong:
        raise DamagedSampleError(
            raw.shard,
            raw.key,
            f"must have class ids in [0, {num_classes - 1}]; got {wrong[:20]}. Prepare again.",
        )


def _seen_labels(labels: ndarray, num_labels: int) -> tuple[int, ...]:
    if labels.dtype == np.uint8:
        # one search of bytes per label, which ends at its first pixel
        blob = labels.tobytes()
        return tuple(label for label in range(1, num_labels + 1) if label in blob)
    return tuple(int(label) for label in np.unique(labels) if label > 0)


@lru_cache(maxsize=2)
def _table(dtype: str) -> torch.Tensor:
    """A label for every id that three bytes can write; zero wherever nobody is at work."""
    return torch.zeros(_NUM_IDS, dtype=getattr(torch, dtype))


@dataclass(frozen=True, kw_only=True)
class _DrawnPhrases:
    """Texts with the number of their region, and the masks of the crop by that number."""

    phrases: list[tuple[str, int]]
    masks: dict[int, Bool[ndarray, "h w"]]


def _draw_phrases(
    rng: np.random.Generator,
    raw: RawSample,
    annotations: Annotations,
    geometry: Geometry,
    max_phrases: int,
) -> _DrawnPhrases:
    sentences = [
        (text, index)
        for index, region in enumerate(annotations.regions)
        for text in region.sentences
    ]
    masks: dict[int, Bool[ndarray, "h w"]] = {}
    chosen: list[tuple[str, int]] = []
    for number in rng.permutation(len(sentences)):
        if len(chosen) == max_phrases:
            break
        text, index = sentences[number]
        if index not in masks:
            region = decode_region(raw, annotations.regions[index], annotations)
            masks[index] = shrink_labels(region, geometry)
        if masks[index].any():
            chosen.append((mirror_text(text, geometry.is_mirrored), index))
    return _DrawnPhrases(phrases=chosen, masks=masks)
