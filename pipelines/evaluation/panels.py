"""Pictures of what a model sees: image, truth and prediction side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image
from torch import nn

from pipelines.box_drawing import DrawnBox, draw_boxes
from pipelines.data.coco import CocoRecord, CocoSplit, decode_mask
from pipelines.drawing import (
    DrawnSegment,
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
from pipelines.evaluation.predictor import (
    FoundSegments,
    ImageArray,
    Predictor,
    SegmentsOnly,
)
from pipelines.evaluation.predictors import predictor_of
from pipelines.evaluation.sets import EvaluationData
from pipelines.evaluation.truth import has_segments, true_map
from pipelines.families import TrainedModel
from xdecoder.batch import Batch, DetectionBatch, SegmentationBatch, Vocabulary

# boxes that are less sure are not drawn
_SURE = 0.3


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with what is known about it, as far as a picture shows it.

    boxes: None where segments are what is known.
    """

    name: str
    image: ImageArray
    segments: tuple[DrawnSegment, ...] = ()
    boxes: tuple[DrawnBox, ...] | None = None
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
    predicted = found_segments(found, vocabulary)
    if example.boxes is None:
        truth = draw_segments(example.image, example.segments)
        prediction = draw_segments(example.image, predicted)
    else:
        truth = draw_boxes(example.image, example.boxes)
        boxes = _found_boxes(found, vocabulary)
        prediction = draw_boxes(example.image, boxes, regions=predicted)
    pictures = [image, truth, prediction]
    titles = ["image", "truth", "prediction"]
    if example.phrase and reads_phrases:
        region = predictor.refer(example.image, [example.phrase])[0]
        described = draw_region(example.image, region, truth=example.region)
        pictures.append(with_strip(described, example.phrase, kicker="phrase"))
        titles.append("what the phrase means (green line: truth)")
    return side_by_side(pictures, titles, heading=example.name)


def _found_boxes(found: FoundSegments, vocabulary: Vocabulary) -> list[DrawnBox]:
    """Predicted boxes as they are drawn, the surest last."""
    return [
        DrawnBox(
            box_xyxy_px=(x, y, x + width, y + height),
            label=f"{vocabulary.names[class_id]} {score:.2f}",
            colour=class_colour(class_id),
        )
        for class_id, score, (x, y, width, height) in reversed(found.boxes or ())
        if score >= _SURE
    ]


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
    pixels = batch.images[index, :, :height, :width].permute(1, 2, 0)  # [h, w, 3]
    image = pixels.round().clamp(0, 255).byte().cpu().numpy()
    name = batch.keys[index]
    if isinstance(batch, DetectionBatch):
        return Example(name=name, image=image, boxes=tuple(_boxes_of_batch(batch, index)))
    targets, phrases = batch.segments[index], batch.phrases[index]
    regions = [
        (int(class_id), mask[:height, :width].cpu().numpy())
        for class_id, mask in zip(targets.class_ids, targets.masks, strict=True)
    ]
    region = phrases.masks[0, :height, :width].cpu().numpy() if phrases.phrases else None
    return Example(
        name=name,
        image=image,
        segments=tuple(_drawn(regions, batch.vocabulary)),
        phrase=phrases.phrases[0] if phrases.phrases else "",
        region=region,
    )


def _boxes_of_batch(batch: DetectionBatch, index: int) -> list[DrawnBox]:
    targets = batch.boxes[index]
    corners = targets.boxes_xyxy_px.tolist()
    return [
        DrawnBox(
            box_xyxy_px=(left, top, right, bottom),
            label=batch.vocabulary.names[class_id],
            colour=class_colour(class_id),
        )
        for class_id, (left, top, right, bottom) in zip(
            targets.class_ids.tolist(), corners, strict=True
        )
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
