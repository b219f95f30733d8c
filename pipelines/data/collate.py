"""Compact samples made into tensors at the size of the batch, on the device of their memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from pipelines.data.augment import enlarge_image, enlarge_labels
from pipelines.data.compact import (
    CompactDetection,
    CompactImage,
    CompactImageText,
    CompactSegmentation,
    compact_detection,
    compact_image_text,
    compact_segmentation,
    step_bytes,
)
from pipelines.data.config import (
    DetectionDataConfig,
    ImageTextDataConfig,
    SegmentationDataConfig,
    TaskDataConfig,
)
from pipelines.data.shards import RawSample
from pipelines.data.step_memory import StepMemory
from xdecoder.batch import (
    BoxTargets,
    DetectionBatch,
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
class DetectionSample:
    """One image with its boxes, augmented and padded; class ids count things only."""

    key: str
    image: Float[Tensor, "3 h w"]
    valid_hw: tuple[int, int]
    boxes: BoxTargets


@dataclass(frozen=True, kw_only=True)
class ImageTextSample:
    """One image with a caption, augmented and padded."""

    key: str
    image: Float[Tensor, "3 h w"]
    valid_hw: tuple[int, int]
    caption: str


def build_segmentation_sample(
    raw: RawSample,
    config: SegmentationDataConfig,
    *,
    seed: int,
    epoch: int,
    num_classes: int = 1 << 15,
) -> SegmentationSample:
    """The sample alone, bit for bit as it is in the batches of this epoch on the CPU.

    Raises:
        DamagedSampleError: a member of the sample is missing or damaged.
    """
    memory = _memory_for_one(config)
    compact = compact_segmentation(
        raw, config, memory, seed=seed, epoch=epoch, num_classes=num_classes
    )
    vocabulary = Vocabulary(names=(), is_thing=())
    batch = collate_segmentation((compact,), vocabulary, memory.memory)
    return SegmentationSample(
        key=raw.key,
        image=batch.images[0],
        valid_hw=batch.valid_sizes_hw[0],
        segments=batch.segments[0],
        phrases=batch.phrases[0],
    )


def build_detection_sample(
    raw: RawSample,
    config: DetectionDataConfig,
    *,
    seed: int,
    epoch: int,
    is_thing: Sequence[bool],
) -> DetectionSample:
    """The sample alone, bit for bit as it is in the batches of this epoch on the CPU.

    Raises:
        DamagedSampleError: a member of the sample is missing or damaged.
    """
    memory = _memory_for_one(config)
    compact = compact_detection(raw, config, memory, seed=seed, epoch=epoch, is_thing=is_thing)
    vocabulary = Vocabulary(names=(), is_thing=())
    batch = collate_detection((compact,), vocabulary, memory.memory)
    return DetectionSample(
        key=raw.key,
        image=batch.images[0],
        valid_hw=batch.valid_sizes_hw[0],
        boxes=batch.boxes[0],
    )


def build_image_text_sample(
    raw: RawSample, config: ImageTextDataConfig, *, seed: int, epoch: int
) -> ImageTextSample:
    """The sample alone, bit for bit as it is in the batches of this epoch on the CPU.

    Raises:
        DamagedSampleError: a member of the sample is missing or damaged.
    """
    memory = _memory_for_one(config)
    compact = compact_image_text(raw, config, memory, seed=seed, epoch=epoch)
    batch = collate_image_text((compact,), memory.memory)
    return ImageTextSample(
        key=raw.key,
        image=batch.images[0],
        valid_hw=batch.valid_sizes_hw[0],
        caption=batch.captions[0],
    )


def collate_segmentation(
    samples: Sequence[CompactSegmentation], vocabulary: Vocabulary, memory: UInt8[Tensor, " n"]
) -> SegmentationBatch:
    """One batch of samples that share a vocabulary; nothing of it lies in `memory`."""
    return SegmentationBatch(
        keys=tuple(sample.key for sample in samples),
        images=_images([sample.image for sample in samples], memory),
        valid_sizes_hw=tuple(sample.image.geometry.valid_hw for sample in samples),
        vocabulary=vocabulary,
        segments=tuple(_segments(sample, memory) for sample in samples),
        phrases=tuple(_phrases(sample, memory) for sample in samples),
        captions=tuple(sample.captions for sample in samples),
    )


def things_of(vocabulary: Vocabulary) -> Vocabulary:
    """The classes that boxes have, which are those that can be counted."""
    pairs = zip(vocabulary.names, vocabulary.is_thing, strict=True)
    return Vocabulary.of(*(name for name, is_thing in pairs if is_thing))


def collate_detection(
    samples: Sequence[CompactDetection], vocabulary: Vocabulary, memory: UInt8[Tensor, " n"]
) -> DetectionBatch:
    """One batch of samples, labelled with the things of a vocabulary that they share.

    Nothing of it lies in `memory`.
    """
    return DetectionBatch(
        keys=tuple(sample.key for sample in samples),
        images=_images([sample.image for sample in samples], memory),
        valid_sizes_hw=tuple(sample.image.geometry.valid_hw for sample in samples),
        vocabulary=things_of(vocabulary),
        boxes=tuple(_boxes(sample, memory.device) for sample in samples),
    )


def collate_image_text(
    samples: Sequence[CompactImageText], memory: UInt8[Tensor, " n"]
) -> ImageTextBatch:
    """One batch of captioned images; nothing of it lies in `memory`."""
    return ImageTextBatch(
        keys=tuple(sample.key for sample in samples),
        images=_images([sample.image for sample in samples], memory),
        valid_sizes_hw=tuple(sample.image.geometry.valid_hw for sample in samples),
        captions=tuple(sample.caption for sample in samples),
    )


def _memory_for_one(config: TaskDataConfig) -> StepMemory:
    num_bytes = step_bytes((replace(config, batch_size=1),), world_size=1)
    return StepMemory(torch.empty(num_bytes, dtype=torch.uint8))


def _images(
    images: Sequence[CompactImage], memory: UInt8[Tensor, " n"]
) -> Float[Tensor, "b 3 h w"]:
    batch = torch.zeros((len(images), 3, *images[0].geometry.out_hw), device=memory.device)
    for image, out in zip(images, batch, strict=True):
        enlarge_image(image.pixels.view(memory), image.geometry, image.colour, out)
    return batch  # [B, 3, H, W]


def _segments(sample: CompactSegmentation, memory: UInt8[Tensor, " n"]) -> SegmentTargets:
    labels = enlarge_labels(sample.labels.view(memory), sample.image.geometry)  # [vh, vw]
    masks = _empty_masks(len(sample.segments), sample.image, memory)
    height, width = labels.shape
    numbers = torch.tensor(sample.segments, dtype=labels.dtype).to(memory.device)
    torch.eq(labels[None], numbers[:, None, None], out=masks[:, :height, :width])
    class_ids = torch.tensor(sample.class_ids, dtype=torch.int64).to(memory.device)
    return SegmentTargets(masks=masks, class_ids=class_ids)


def _boxes(sample: CompactDetection, device: torch.device) -> BoxTargets:
    boxes = torch.tensor(sample.boxes_xyxy_px, dtype=torch.float32).reshape(-1, 4)  # [m, 4]
    class_ids = torch.tensor(sample.class_ids, dtype=torch.int64)
    return BoxTargets(boxes_xyxy_px=boxes.to(device), class_ids=class_ids.to(device))


def _phrases(sample: CompactSegmentation, memory: UInt8[Tensor, " n"]) -> PhraseTargets:
    masks = _empty_masks(len(sample.phrases), sample.image, memory)
    regions = [
        enlarge_labels(plane.view(memory), sample.image.geometry) for plane in sample.regions
    ]
    for mask, number in zip(masks, sample.region_of_phrase, strict=True):
        height, width = regions[number].shape
        mask[:height, :width] = regions[number]
    return PhraseTargets(phrases=sample.phrases, masks=masks)


def _empty_masks(
    count: int, image: CompactImage, memory: UInt8[Tensor, " n"]
) -> Bool[Tensor, "m h w"]:
    shape = (count, *image.geometry.out_hw)
    return torch.zeros(shape, dtype=torch.bool, device=memory.device)
