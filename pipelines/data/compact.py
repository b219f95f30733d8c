"""A sample as a worker leaves it: decoded and cropped, and no larger than its source.

Masks travel as one label map of the crop, where each pixel belongs to one segment, and as one mask
per region that a drawn phrase means; boxes travel as numbers. `collate.py` makes tensors of them,
at the size of the batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int16, Int32, UInt8
from numpy import ndarray

from pipelines.data.augment import (
    ColourMatrix,
    Geometry,
    draw_colour,
    draw_geometry,
    mirror_text,
    move_boxes,
    sample_generator,
    shrink_image,
    shrink_labels,
    visible_shares,
)
from pipelines.data.config import (
    AugmentConfig,
    DetectionDataConfig,
    ImageTextDataConfig,
    SegmentationDataConfig,
    TaskDataConfig,
)
from pipelines.data.decode import (
    Annotations,
    LabelledBox,
    decode_annotations,
    decode_image,
    decode_region,
    decode_segment_ids,
)
from pipelines.data.shards import RawSample
from pipelines.data.step_memory import Plane, StepMemory
from pipelines.errors import DamagedSampleError

_NUM_IDS = 1 << 24
# of a box, less than this in the crop is no thing to look for: it may be a corner without its thing
MIN_VISIBLE_SHARE = 0.1
# of the batch, on both axes
MIN_BOX_SIDE_PX = 1.0


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
class CompactDetection:
    """An image and its boxes of things, in pixels of the batch; class ids count things only."""

    key: str
    image: CompactImage
    boxes_xyxy_px: tuple[tuple[float, float, float, float], ...]
    class_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CompactImageText:
    """An image and one of its captions."""

    key: str
    image: CompactImage
    caption: str


CompactSample = CompactSegmentation | CompactDetection | CompactImageText


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


def compact_detection(
    raw: RawSample,
    config: DetectionDataConfig,
    memory: StepMemory,
    *,
    seed: int,
    epoch: int,
    is_thing: Sequence[bool],
) -> CompactDetection:
    """The sample as this epoch sees it.

    Boxes of crowds are left out, and so are boxes of which the crop holds less than
    `MIN_VISIBLE_SHARE` of the part in the image, or less than `MIN_BOX_SIDE_PX` on an axis.
    is_thing: of every class of the shards; class ids of the result count those that are.

    Raises:
        DamagedSampleError: a member of the sample is missing or damaged.
    """
    rng = sample_generator(seed, epoch, "detection", raw.key)
    annotations = decode_annotations(raw, with_boxes=True)
    things = [box for box in annotations.boxes if not box.is_crowd]
    boxes = _checked_boxes(raw, things, annotations.size_hw)
    class_ids = _thing_ids(raw, things, is_thing)
    geometry = draw_geometry(rng, annotations.size_hw, config.size_hw, config.augment)
    image = _image(rng, raw, annotations, geometry, config.augment, memory)
    moved = move_boxes(boxes, geometry)
    sides = moved[:, 2:] - moved[:, :2]  # [m, 2]
    is_kept = visible_shares(boxes, geometry) >= MIN_VISIBLE_SHARE
    kept = np.flatnonzero(is_kept & (sides >= MIN_BOX_SIDE_PX).all(axis=1))
    return CompactDetection(
        key=raw.key,
        image=image,
        boxes_xyxy_px=tuple(
            (left, top, right, end) for left, top, right, end in moved[kept].tolist()
        ),
        class_ids=tuple(class_ids[place] for place in kept),
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


def step_bytes(parts: Iterable[TaskDataConfig], *, world_size: int) -> int:
    """The most bytes that a rank's step can place; a crop is never larger than its batch."""
    total = 0
    for part in parts:
        # an image of bytes; each place may be rounded up
        pixels, places = 3, 1
        if isinstance(part, SegmentationDataConfig):
            # labels of two bytes, masks
            pixels, places = pixels + 2 + part.max_phrases, places + 1 + part.max_phrases
        one = part.size_hw[0] * part.size_hw[1] * pixels + 8 * places
        total += one * (part.batch_size // world_size)
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


def _checked_boxes(
    raw: RawSample, boxes: Sequence[LabelledBox], size_hw: tuple[int, int]
) -> Float64[ndarray, "m 4"]:
    """The parts of the boxes that lie in the image, as corners; no numbers that are none."""
    wrong = [box.bbox_xywh_px for box in boxes if not _touches(box.bbox_xywh_px, size_hw)]
    if wrong:
        raise DamagedSampleError(
            raw.shard,
            raw.key,
            "must have boxes [left, top, width, height] of finite numbers, no size below 0, that "
            f"meet its {size_hw[0]} x {size_hw[1]} pixels; got {wrong[:5]}. Prepare again.",
        )
    corners = np.array([box.bbox_xywh_px for box in boxes], np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    height, width = size_hw
    return np.clip(corners, 0, (width, height, width, height))  # [m, 4]


def _touches(bbox_xywh_px: tuple[float, ...], size_hw: tuple[int, int]) -> bool:
    if len(bbox_xywh_px) != 4 or not np.isfinite(bbox_xywh_px).all():
        return False
    left, top, width, height = bbox_xywh_px
    is_within = left <= size_hw[1] and top <= size_hw[0] and left + width >= 0 and top + height >= 0
    return min(width, height) >= 0 and is_within


def _thing_ids(raw: RawSample, boxes: Sequence[LabelledBox], is_thing: Sequence[bool]) -> list[int]:
    places = {class_id: place for place, class_id in enumerate(np.flatnonzero(is_thing).tolist())}
    wrong = [box.class_id for box in boxes if box.class_id not in places]
    if wrong:
        raise DamagedSampleError(
            raw.shard,
            raw.key,
            f"must have boxes of the {len(places)} classes of things among {len(is_thing)} "
            f"classes; got class ids {wrong[:20]}. Prepare again.",
        )
    return [places[box.class_id] for box in boxes]


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
