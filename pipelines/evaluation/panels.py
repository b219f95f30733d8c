"""Pictures of what a model sees: image, truth and prediction side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image
from torch import nn

from pipelines.data.coco import CocoRecord, CocoSplit, decode_mask
from pipelines.drawing import (
    DrawnSegment,
    box_region,
    class_colour,
    contact_sheet,
    draw_region,
    draw_segments,
    enlarged,
    side_by_side,
    with_strip,
)
from pipelines.evaluation.images import read_image
from pipelines.evaluation.mask_predictor import MaskPredictor
from pipelines.evaluation.options import EvaluationOptions
from pipelines.evaluation.predictor import FoundSegments, ImageArray, Predictor
from pipelines.evaluation.predictors import predictor_of
from pipelines.evaluation.sets import EvaluationData
from pipelines.evaluation.truth import has_segments, true_map
from pipelines.families import TrainedModel
from xdecoder.batch import Batch, DetectionBatch, SegmentationBatch, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with what is known about it, as far as a picture shows it."""

    name: str
    image: ImageArray
    segments: tuple[DrawnSegment, ...]
    phrase: str = ""
    region: Bool[np.ndarray, "h w"] | None = None
    caption: str = ""


def make_panels(
    model: TrainedModel,
    data: EvaluationData,
    image_ids: Sequence[int],
    path: Path,
    *,
    options: EvaluationOptions,
    headings: Mapping[int, str] | None = None,
) -> Path:
    """The path of a PNG with a row for each image: image, truth, prediction, phrase, caption."""
    found = data.split
    predictor = predictor_of(model.eval(), options=options)
    names = headings or {}
    rows = [
        draw_example(
            predictor,
            example_of(record, found, name=names.get(record.image_id, "")),
            vocabulary_of(found),
        )
        for record in _in_order(found, image_ids)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows).save(path)
    return path


class TrainingPanels:
    """Draws predictions on the images of a training batch; called with step, model and batches."""

    def __init__(self, folder: Path, *, options: EvaluationOptions, num_images: int = 4) -> None:
        self._folder = folder
        self._options = options
        self._num_images = num_images

    def __call__(self, step: int, model: nn.Module, batches: Sequence[Batch]) -> dict[str, Path]:
        """Paths of the pictures by name; empty where no batch has segments or boxes."""
        found = [each for each in batches if isinstance(each, SegmentationBatch | DetectionBatch)]
        if not found or not isinstance(model, TrainedModel):
            return {}
        predictor = predictor_of(model, options=self._options)
        rows = [
            draw_example(predictor, _example_of_batch(batch, index), batch.vocabulary)
            for batch in found
            for index in range(min(self._num_images, len(batch.keys)))
        ]
        path = self._folder / f"step_{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(rows).save(path)
        return {"train": path}


def draw_example(predictor: Predictor, example: Example, vocabulary: Vocabulary) -> Image.Image:
    """One row of panels for one image."""
    found = predictor.segment([example.image], vocabulary)[0]
    reads_phrases = not isinstance(predictor, MaskPredictor)
    image = enlarged(example.image)
    if not isinstance(predictor, SegmentsOnly):
        image = with_strip(image, predictor.caption([example.image])[0] or "–", kicker="caption")
    pictures = [
        image,
        draw_segments(example.image, example.segments),
        draw_segments(example.image, found_segments(found, vocabulary)),
    ]
    titles = ["image", "truth", "prediction"]
    if example.phrase and reads_phrases:
        region = predictor.refer(example.image, [example.phrase])[0]
        described = draw_region(example.image, region, truth=example.region)
        pictures.append(with_strip(described, example.phrase, kicker="phrase"))
        titles.append("what the phrase means (green line: truth)")
    return side_by_side(pictures, titles, heading=example.name)


def found_segments(found: FoundSegments, vocabulary: Vocabulary) -> list[DrawnSegment]:
    """Predicted segments as they are drawn, stuff first."""
    drawn = [
        DrawnSegment(
            region=found.segment_ids == ident,
            label=vocabulary.names[index],
            colour=class_colour(index),
            is_thing=vocabulary.is_thing[index],
        )
        for ident, index in found.classes.items()
    ]
    return sorted(drawn, key=lambda segment: segment.is_thing)


def vocabulary_of(split: CocoSplit) -> Vocabulary:
    """The classes of a split, as a model reads them."""
    categories = split.categories
    return Vocabulary(
        names=tuple(category.prompt for category in categories),
        is_thing=tuple(category.is_thing for category in categories),
    )


def example_of(record: CocoRecord, split: CocoSplit, *, name: str = "") -> Example:
    """What is known about an annotated image; of several phrases the first one."""
    region = record.refs[0] if record.refs else None
    return Example(
        name=name or record.image_path.name,
        image=read_image(record.image_path, turn_upright=False),
        segments=tuple(_true_segments(record, split)),
        phrase=region.sentences[0].text if region else "",
        region=decode_mask(region.instance.segmentation, record.size_hw) if region else None,
        caption=record.captions[0] if record.captions else "",
    )


def _true_segments(record: CocoRecord, split: CocoSplit) -> list[DrawnSegment]:
    vocabulary = vocabulary_of(split)
    categories = split.categories
    class_of = {category.id: index for index, category in enumerate(categories)}
    regions: list[tuple[int, Bool[np.ndarray, "h w"]]]
    if has_segments(record):
        truth = true_map(record)
        regions = [(class_of[s.category_id], truth.ids == s.id) for s in truth.segments]
    else:
        regions = [
            (class_of[instance.category_id], decode_mask(instance.segmentation, record.size_hw))
            for instance in record.instances or ()
        ]
    return _drawn(regions, vocabulary)


def _example_of_batch(batch: SegmentationBatch | DetectionBatch, index: int) -> Example:
    height, width = batch.valid_sizes_hw[index]
    image = batch.images[index, :, :height, :width].permute(1, 2, 0)  # [h, w, 3]
    example = Example(
        name=batch.keys[index],
        image=image.round().clamp(0, 255).byte().cpu().numpy(),
        segments=tuple(_drawn(_regions_of_batch(batch, index), batch.vocabulary)),
    )
    if isinstance(batch, DetectionBatch) or not batch.phrases[index].phrases:
        return example
    phrases = batch.phrases[index]
    region = phrases.masks[0, :height, :width].cpu().numpy()
    return replace(example, phrase=phrases.phrases[0], region=region)


def _regions_of_batch(
    batch: SegmentationBatch | DetectionBatch, index: int
) -> list[tuple[int, Bool[np.ndarray, "h w"]]]:
    height, width = batch.valid_sizes_hw[index]
    if isinstance(batch, DetectionBatch):
        boxes = batch.boxes[index]
        pairs = zip(boxes.class_ids.tolist(), boxes.boxes_xyxy_px.tolist(), strict=True)
        return [(class_id, box_region(box, (height, width))) for class_id, box in pairs]
    targets = batch.segments[index]
    return [
        (int(class_id), mask[:height, :width].cpu().numpy())
        for class_id, mask in zip(targets.class_ids, targets.masks, strict=True)
    ]


def _drawn(
    regions: Sequence[tuple[int, Bool[np.ndarray, "h w"]]], vocabulary: Vocabulary
) -> list[DrawnSegment]:
    drawn = [
        DrawnSegment(
            region=region,
            label=vocabulary.names[index],
            colour=class_colour(index),
            is_thing=vocabulary.is_thing[index],
        )
        for index, region in regions
    ]
    return sorted(drawn, key=lambda segment: segment.is_thing)


def _in_order(split: CocoSplit, image_ids: Sequence[int]) -> list[CocoRecord]:
    records = {record.image_id: record for record in split.records}
    return [records[image_id] for image_id in image_ids if image_id in records]
