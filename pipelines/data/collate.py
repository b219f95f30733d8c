"""Decoded and augmented samples, and the batches that tasks read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.data.augment import (
    Geometry,
    draw_geometry,
    jitter_colour,
    mirror_text,
    sample_generator,
    transform_image,
    transform_labels,
)
from pipelines.data.config import ImageTextDataConfig, SegmentationDataConfig
from pipelines.data.decode import (
    Annotations,
    decode_annotations,
    decode_image,
    decode_region,
    decode_segment_ids,
)
from pipelines.data.shards import RawSample
from xdecoder.batch import (
    ImageTextBatch,
    PhraseTargets,
    SegmentationBatch,
    SegmentTargets,
    Vocabulary,
)


@dataclass(frozen=True, kw_only=True)
class SegmentationSample:
    """One image with its segments and phrases, augmented and padded."""

    key: str
    image: Float[Tensor, "3 h w"]
    valid_hw: tuple[int, int]
    segments: SegmentTargets
    phrases: PhraseTargets


@dataclass(frozen=True, kw_only=True)
class ImageTextSample:
    """One image with a caption, augmented and padded."""

    key: str
    image: Float[Tensor, "3 h w"]
    valid_hw: tuple[int, int]
    caption: str


def build_segmentation_sample(
    raw: RawSample, config: SegmentationDataConfig, *, seed: int, epoch: int
) -> SegmentationSample:
    """The sample as this epoch sees it; segments and phrases cropped away are dropped.

    Raises:
        DataError: a member of the sample is missing or damaged.
    """
    rng = sample_generator(seed, epoch, "segmentation", raw.key)
    annotations = decode_annotations(raw)
    geometry = draw_geometry(rng, annotations.size_hw, config.size_hw, config.augment)
    image = transform_image(decode_image(raw, annotations), geometry)
    return SegmentationSample(
        key=raw.key,
        image=jitter_colour(rng, image, config.augment.colour_strength),
        valid_hw=geometry.valid_hw,
        segments=_segments(raw, annotations, geometry),
        phrases=_phrases(rng, raw, annotations, geometry, config.max_phrases),
    )


def build_image_text_sample(
    raw: RawSample, config: ImageTextDataConfig, *, seed: int, epoch: int
) -> ImageTextSample:
    """The sample as this epoch sees it, with one of its captions.

    Raises:
        DataError: a member of the sample is missing or damaged.
    """
    rng = sample_generator(seed, epoch, "image_text", raw.key)
    annotations = decode_annotations(raw)
    caption = annotations.captions[int(rng.integers(len(annotations.captions)))]
    geometry = draw_geometry(rng, annotations.size_hw, config.size_hw, config.augment)
    image = transform_image(decode_image(raw, annotations), geometry)
    return ImageTextSample(
        key=raw.key,
        image=jitter_colour(rng, image, config.augment.colour_strength),
        valid_hw=geometry.valid_hw,
        caption=mirror_text(caption, geometry.is_mirrored),
    )


def collate_segmentation(
    samples: Sequence[SegmentationSample], vocabulary: Vocabulary
) -> SegmentationBatch:
    """One batch of samples that share a vocabulary."""
    return SegmentationBatch(
        keys=tuple(sample.key for sample in samples),
        images=torch.stack([sample.image for sample in samples]),
        valid_sizes_hw=tuple(sample.valid_hw for sample in samples),
        vocabulary=vocabulary,
        segments=tuple(sample.segments for sample in samples),
        phrases=tuple(sample.phrases for sample in samples),
    )


def collate_image_text(samples: Sequence[ImageTextSample]) -> ImageTextBatch:
    """One batch of captioned images."""
    return ImageTextBatch(
        keys=tuple(sample.key for sample in samples),
        images=torch.stack([sample.image for sample in samples]),
        valid_sizes_hw=tuple(sample.valid_hw for sample in samples),
        captions=tuple(sample.caption for sample in samples),
    )


def _segments(raw: RawSample, annotations: Annotations, geometry: Geometry) -> SegmentTargets:
    # a crowd is a region of several things: neither a target nor a negative of its own
    entries = [entry for entry in annotations.segments or () if not entry[2]]
    ids = transform_labels(decode_segment_ids(raw, annotations), geometry)  # [H, W]
    wanted = np.array([entry[0] for entry in entries], np.int32)
    masks = ids[None] == wanted[:, None, None]  # [M, H, W]
    is_seen = masks.any(axis=(1, 2))
    class_ids = np.array([entry[1] for entry in entries], np.int64)
    return SegmentTargets(
        masks=torch.from_numpy(masks[is_seen]), class_ids=torch.from_numpy(class_ids[is_seen])
    )


def _phrases(
    rng: np.random.Generator,
    raw: RawSample,
    annotations: Annotations,
    geometry: Geometry,
    max_phrases: int,
) -> PhraseTargets:
    sentences = [
        (text, index)
        for index, region in enumerate(annotations.regions)
        for text in region.sentences
    ]
    masks: dict[int, np.ndarray] = {}
    chosen: list[tuple[str, int]] = []
    for number in rng.permutation(len(sentences)):
        if len(chosen) == max_phrases:
            break
        text, index = sentences[number]
        if index not in masks:
            region = decode_region(raw, annotations.regions[index], annotations)
            masks[index] = transform_labels(region, geometry)
        if masks[index].any():
            chosen.append((mirror_text(text, geometry.is_mirrored), index))
    stacked = np.zeros((len(chosen), *geometry.out_hw), bool)
    for row, (_, index) in zip(stacked, chosen, strict=True):
        row[:] = masks[index]
    return PhraseTargets(phrases=tuple(text for text, _ in chosen), masks=torch.from_numpy(stacked))
