"""Panels of what training sees: the augmented image, its segments, boxes, phrases, its caption."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.box_drawing import DrawnBox, draw_boxes
from pipelines.data.collate import (
    DetectionSample,
    ImageTextSample,
    SegmentationSample,
    build_detection_sample,
    build_image_text_sample,
    build_segmentation_sample,
    things_of,
)
from pipelines.data.config import (
    AugmentConfig,
    DetectionDataConfig,
    ImageTextDataConfig,
    SegmentationDataConfig,
)
from pipelines.data.decode import decode_annotations
from pipelines.data.shards import Manifest, RawSample, read_index, read_manifest, read_sample
from pipelines.drawing import (
    DrawnSegment,
    class_colour,
    contact_sheet,
    draw_region,
    draw_segments,
    enlarged,
    with_strip,
)
from pipelines.errors import DataError
from xdecoder.batch import Vocabulary


def draw_preview(
    folder: Path,
    split: str,
    key: str,
    *,
    size_hw: tuple[int, int] | None = None,
    augment: AugmentConfig | None = None,
    max_phrases: int = 4,
    seed: int = 0,
    epoch: int = 0,
) -> Image.Image:
    """One picture of a sample as an epoch sees it; without `size_hw` at its own size, unchanged.

    Raises:
        DataError: there is no such sample, or it is damaged.
    """
    return draw_sample(
        _find(folder, split, key),
        read_manifest(folder),
        size_hw=size_hw,
        augment=augment,
        max_phrases=max_phrases,
        seed=seed,
        epoch=epoch,
    )


def draw_sample(
    raw: RawSample,
    manifest: Manifest,
    *,
    size_hw: tuple[int, int] | None = None,
    augment: AugmentConfig | None = None,
    max_phrases: int = 4,
    seed: int = 0,
    epoch: int = 0,
) -> Image.Image:
    """`draw_preview` of a sample that was read already.

    Raises:
        DataError: it is damaged, or has nothing to draw.
    """
    annotations = decode_annotations(raw)
    document = json.loads(raw.member("json"))
    vocabulary = Vocabulary(names=manifest.names, is_thing=manifest.is_thing)
    augment = augment or AugmentConfig(flip_prob=0.0)
    size_hw = size_hw or annotations.size_hw
    pictures: list[Image.Image] = []
    if annotations.captions:
        text_config = ImageTextDataConfig(size_hw=size_hw, augment=augment)
        pictures += _captioned(build_image_text_sample(raw, text_config, seed=seed, epoch=epoch))
    if annotations.segments is not None:
        config = SegmentationDataConfig(size_hw=size_hw, augment=augment, max_phrases=max_phrases)
        sample = build_segmentation_sample(raw, config, seed=seed, epoch=epoch)
        pictures += _segmented(sample, vocabulary, kicker=document.get("annotation", "panoptic"))
    if document["instances"]:
        boxes_config = DetectionDataConfig(size_hw=size_hw, augment=augment)
        found = build_detection_sample(
            raw, boxes_config, seed=seed, epoch=epoch, is_thing=manifest.is_thing
        )
        pictures.append(_boxed(found, vocabulary))
    if not pictures:
        raise DataError(f"{raw.shard}: sample {raw.key} has neither captions nor regions to show.")
    return contact_sheet(pictures, num_columns=min(3, len(pictures)))


def sample_keys(folder: Path, split: str) -> tuple[str, ...]:
    """The keys of a split in shard order, without samples that have nothing to draw."""
    index = read_index(folder, read_manifest(folder).split(folder, split))
    is_drawable = (index["num_captions"] > 0) | (index["num_segments"] >= 0)
    is_drawable |= index["num_instances"] > 0
    return tuple(key.decode("utf-8") for key in index["key"][is_drawable])


def _find(folder: Path, split: str, key: str) -> RawSample:
    info = read_manifest(folder).split(folder, split)
    index = read_index(folder, info)
    rows = np.flatnonzero(index["key"] == key.encode("utf-8"))
    if len(rows) == 0:
        raise DataError(f"{folder}: split {split!r} has no sample {key!r}.")
    row = index[rows[0]]
    return read_sample(folder, info.shards[row["shard"]], row)


def _pixels(sample: SegmentationSample | DetectionSample | ImageTextSample) -> np.ndarray:
    height, width = sample.valid_hw
    image = sample.image[:, :height, :width].permute(1, 2, 0)  # [h, w, 3]
    return image.round().clamp(0, 255).byte().numpy()


def _captioned(sample: ImageTextSample) -> list[Image.Image]:
    return [with_strip(enlarged(_pixels(sample)), sample.caption, kicker=f"caption {sample.key}")]


def _boxed(sample: DetectionSample, vocabulary: Vocabulary) -> Image.Image:
    names = things_of(vocabulary).names
    corners = sample.boxes.boxes_xyxy_px.tolist()
    drawn = [
        DrawnBox(
            box_xyxy_px=(left, top, right, bottom),
            label=names[class_id],
            colour=class_colour(vocabulary.names.index(names[class_id])),
        )
        for class_id, (left, top, right, bottom) in zip(
            sample.boxes.class_ids.tolist(), corners, strict=True
        )
    ]
    text = f"{len(drawn)} boxes, {sample.valid_hw[0]} x {sample.valid_hw[1]}"
    return with_strip(draw_boxes(_pixels(sample), drawn), text, kicker="boxes")


def _segmented(
    sample: SegmentationSample, vocabulary: Vocabulary, *, kicker: str
) -> list[Image.Image]:
    pixels = _pixels(sample)
    height, width = sample.valid_hw
    segments = [
        DrawnSegment(
            region=mask[:height, :width].numpy(),
            label=vocabulary.names[class_id],
            colour=class_colour(class_id),
            is_thing=vocabulary.is_thing[class_id],
        )
        for mask, class_id in zip(
            sample.segments.masks, sample.segments.class_ids.tolist(), strict=True
        )
    ]
    names = f"{len(segments)} segments, {height} x {width}"
    pictures = [with_strip(draw_segments(pixels, segments), names, kicker=kicker)]
    for text, mask in zip(sample.phrases.phrases, sample.phrases.masks, strict=True):
        drawn = draw_region(pixels, mask[:height, :width].numpy())
        pictures.append(with_strip(drawn, text, kicker="phrase"))
    return pictures
