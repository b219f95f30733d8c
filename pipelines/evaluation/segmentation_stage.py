"""PQ, AP of masks and boxes, and mIoU of a split."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from pipelines.data.coco import CocoRecord, CocoSplit
from pipelines.evaluation.object_tally import ObjectTally
from pipelines.evaluation.panoptic import (
    PanopticPredictions,
    PanopticScores,
    PanopticTally,
    SegmentMatches,
    match_segments,
    segments_png,
)
from pipelines.evaluation.predictor import FoundSegments, ImageArray, Predictor
from pipelines.evaluation.semantic import SemanticConfusion
from pipelines.evaluation.stage import Answer, Values
from pipelines.evaluation.truth import has_segments, true_map
from xdecoder.batch import Vocabulary

_UNLABELLED = -1


class SegmentationStage:
    """Counts predicted segments; an image counts for each kind of annotation that it has.

    has_objects: whether the truth tells objects apart; without it only the semantic map is scored,
    as for label pictures.
    """

    name = "segmentation"

    def __init__(self, split: CocoSplit, *, has_objects: bool = True) -> None:
        categories = split.categories
        self.vocabulary = Vocabulary(
            names=tuple(category.prompt for category in categories),
            is_thing=tuple(category.is_thing for category in categories),
        )
        self.category_ids = [category.id for category in categories]
        self.class_of = {category.id: index for index, category in enumerate(categories)}
        self._panoptic = PanopticPredictions()
        self._tally = PanopticTally(is_thing={c.id: c.is_thing for c in categories})
        self._confusion = SemanticConfusion(len(categories))
        self._objects = ObjectTally(categories)
        self._quality_of_image: dict[int, float] = {}
        self._num_panoptic = 0
        self._has_objects = has_objects

    def wants(self, record: CocoRecord) -> bool:
        """Whether there are segments or instances to compare with."""
        return has_segments(record) or record.instances is not None

    def answers(
        self,
        predictor: Predictor,
        images: Sequence[ImageArray],
        records: Sequence[CocoRecord],
    ) -> list[Answer]:
        """Segments with their matches, counted pixels of the semantic map, and instances."""
        found = predictor.segment(images, self.vocabulary)
        return [
            (self._segments_answer(record, each) if has_segments(record) else {})
            | (self._objects.answer(record, each) if record.instances is not None else {})
            for record, each in zip(records, found, strict=True)
        ]

    def take(self, record: CocoRecord, answer: Answer) -> None:
        """Count one image."""
        if "matched" in answer:
            matches = SegmentMatches(
                matched=tuple((int(c), float(overlap)) for c, overlap in answer["matched"]),
                missed=tuple(answer["missed"]),
                invented=tuple(answer["invented"]),
            )
            self._tally.add(matches)
            self._quality_of_image[record.image_id] = matches.quality
            rows, columns, counts = np.array(answer["pixels"], dtype=np.int64).reshape(-1, 3).T
            self._confusion.counts[rows, columns] += counts
            segments = {int(key): int(value) for key, value in answer["segments"].items()}
            self._panoptic.add_png(record.image_id, base64.b64decode(answer["png"]), segments)
            self._num_panoptic += 1
        if "instances" in answer:
            self._objects.take(record, answer)

    def result(self) -> tuple[Values, dict[str, Any]]:
        """Percentages by key, and details: figures by class, counts."""
        values: Values = {}
        details: dict[str, Any] = {
            "num_images_panoptic": self._num_panoptic,
        }
        by_class: dict[int, Values] = {}
        if self._num_panoptic:
            values |= self._semantic(details, by_class)
            if self._has_objects:
                scores = self._tally.result()
                values |= _panoptic_values(scores)
                details["pq_num_classes_in_mean"] = scores.all.num_classes
                for key, row in scores.per_class.items():
                    by_class.setdefault(key, {}).update(
                        pq=100 * row.pq, sq=100 * row.sq, rq=100 * row.rq
                    )
        average_precision, counts = self._objects.result(by_class)
        values |= average_precision
        details |= counts
        names = dict(zip(self.category_ids, self.vocabulary.names, strict=True))
        details["per_class"] = {names[key]: row for key, row in by_class.items()}
        return values, details

    def by_image(self) -> dict[str, dict[int, float]]:
        """Percentages of single images, by name and image id."""
        return {"pq": {key: 100 * value for key, value in self._quality_of_image.items()}}

    def write_predictions(self, folder: Path) -> None:
        """COCO's panoptic JSON with PNGs, and COCO's results of instances and of boxes."""
        if self._num_panoptic:
            self._panoptic.write(folder / "panoptic.json")
        self._objects.write_predictions(folder)

    def _segments_answer(self, record: CocoRecord, found: FoundSegments) -> Answer:
        truth = true_map(record)
        categories = {ident: self.category_ids[index] for ident, index in found.classes.items()}
        matches = match_segments(truth.ids, truth.segments, found.segment_ids, categories)
        classes = np.full(truth.ids.shape, _UNLABELLED, dtype=np.int64)
        for segment in truth.segments:
            classes[truth.ids == segment.id] = self.class_of[segment.category_id]
        return {
            "matched": [list(pair) for pair in matches.matched],
            "missed": list(matches.missed),
            "invented": list(matches.invented),
            "pixels": self._pixels(classes, found.semantic),
            "segments": {str(key): value for key, value in categories.items()},
            "png": base64.b64encode(segments_png(found.segment_ids)).decode("ascii"),
        }

    def _pixels(
        self, truth: Int[np.ndarray, "h w"], found: Int[np.ndarray, "h w"]
    ) -> list[list[int]]:
        """True class, predicted class and number of pixels, for every pair that occurs."""
        one = SemanticConfusion(self._confusion.num_classes)
        one.add(truth, found, ignore=_UNLABELLED)
        rows, columns = one.counts.nonzero()
        counts = one.counts[rows, columns]
        return np.stack([rows, columns, counts], axis=1).tolist()

    def _semantic(self, details: dict[str, Any], by_class: dict[int, Values]) -> Values:
        semantic = self._confusion.result()
        details["miou_num_classes_in_mean"] = semantic.num_classes_in_mean
        details["miou_num_classes_in_truth"] = semantic.num_classes_in_truth
        for key, value in zip(self.category_ids, semantic.per_class.tolist(), strict=True):
            if np.isfinite(value):
                by_class[key] = {"iou": 100 * value}
        return {
            "miou": 100 * semantic.miou,
            "miou_truth": 100 * semantic.miou_truth,
            "pixel_accuracy": 100 * semantic.pixel_accuracy,
        }


def _panoptic_values(scores: PanopticScores) -> Values:
    values: Values = {}
    for suffix, group in (("", scores.all), ("_things", scores.things), ("_stuff", scores.stuff)):
        values[f"pq{suffix}"] = 100 * group.pq
        values[f"sq{suffix}"] = 100 * group.sq
        values[f"rq{suffix}"] = 100 * group.rq
    return values
