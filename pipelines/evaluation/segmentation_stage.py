"""PQ, AP and mIoU of a split."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from pipelines.data.coco import CocoRecord, CocoSplit, read_segment_ids
from pipelines.evaluation.instance import coco_of, mask_result, score_instances
from pipelines.evaluation.panoptic import (
    PanopticPredictions,
    PanopticScores,
    PanopticTally,
    TrueSegment,
    match_segments,
)
from pipelines.evaluation.predictor import FoundSegments, ImageArray, Predictor
from pipelines.evaluation.semantic import IGNORE, SemanticConfusion
from xdecoder.batch import Vocabulary

Values = dict[str, float]


class SegmentationStage:
    """Collects predicted segments; an image counts for each kind of annotation that it has."""

    name = "segmentation"

    def __init__(self, split: CocoSplit) -> None:
        categories = split.panoptic_categories or split.instance_categories
        self.vocabulary = Vocabulary(
            names=tuple(category.prompt for category in categories),
            is_thing=tuple(category.is_thing for category in categories),
        )
        self.category_ids = [category.id for category in categories]
        self.class_of = {category.id: index for index, category in enumerate(categories)}
        self.panoptic = PanopticPredictions()
        self.tally = PanopticTally(is_thing={c.id: c.is_thing for c in categories})
        self.confusion = SemanticConfusion(len(categories))
        self.instances: list[dict[str, Any]] = []
        self.instance_image_ids: list[int] = []
        self.panoptic_image_ids: list[int] = []
        self._quality_of_image: dict[int, float] = {}
        self._split = split

    def wants(self, record: CocoRecord) -> bool:
        """Whether there are segments or instances to compare with."""
        return record.segments is not None or record.instances is not None

    def add(
        self,
        predictor: Predictor,
        images: Sequence[ImageArray],
        records: Sequence[CocoRecord],
    ) -> None:
        """Predict and take some images."""
        for record, found in zip(records, predictor.segment(images, self.vocabulary), strict=True):
            if record.segments is not None and record.panoptic_path is not None:
                self._take_segments(record, found, read_segment_ids(record.panoptic_path))
            if record.instances is not None:
                self._take_instances(record, found)

    def result(self) -> tuple[Values, dict[str, Any]]:
        """Percentages by key, and details: figures by class, counts."""
        values: Values = {}
        details: dict[str, Any] = {}
        names = dict(zip(self.category_ids, self.vocabulary.names, strict=True))
        if self.panoptic_image_ids:
            scores = self.tally.result()
            values |= _panoptic_values(scores)
            semantic = self.confusion.result()
            values["miou"] = 100 * semantic.miou
            values["pixel_accuracy"] = 100 * semantic.pixel_accuracy
            details["miou_num_classes_in_mean"] = semantic.num_classes_in_mean
            details["pq_num_classes_in_mean"] = scores.all.num_classes
            details["per_class"] = {
                names[category]: {"pq": 100 * row.pq, "sq": 100 * row.sq, "rq": 100 * row.rq}
                for category, row in scores.per_class.items()
            }
        if self.instance_image_ids:
            instance = score_instances(
                truth=coco_of(json.loads(self._annotation_file("instances").read_text())),
                results=self.instances,
                image_ids=self.instance_image_ids,
            )
            values |= {"ap": 100 * instance.ap, "ap50": 100 * instance.ap50}
            values["ap75"] = 100 * instance.ap75
        details["num_images_panoptic"] = len(self.panoptic_image_ids)
        details["num_images_instances"] = len(self.instance_image_ids)
        return values, details

    def by_image(self) -> dict[str, dict[int, float]]:
        """Percentages of single images, by name and image id."""
        return {"pq": {key: 100 * value for key, value in self._quality_of_image.items()}}

    def write_predictions(self, folder: Path) -> None:
        """Write the official submission formats: panoptic JSON with PNGs, instance results."""
        folder.mkdir(parents=True, exist_ok=True)
        self.panoptic.write(folder / "panoptic.json")
        (folder / "instances.json").write_text(json.dumps(self.instances))

    def _annotation_file(self, kind: str) -> Path:
        return next(
            path for path in self._split.annotation_files if path.name.startswith(f"{kind}_")
        )

    def _take_segments(
        self, record: CocoRecord, found: FoundSegments, truth_ids: Int[np.ndarray, "h w"]
    ) -> None:
        categories = {ident: self.category_ids[index] for ident, index in found.classes.items()}
        self.panoptic.add(record.image_id, found.segment_ids, categories)
        self.panoptic_image_ids.append(record.image_id)
        truth = np.full(truth_ids.shape, IGNORE, dtype=np.int64)
        for segment in record.segments or ():
            truth[truth_ids == segment.id] = self.class_of[segment.category_id]
        self.confusion.add(truth, found.semantic)
        matches = match_segments(
            truth_ids,
            [
                TrueSegment(
                    id=segment.id,
                    category_id=segment.category_id,
                    is_crowd=segment.is_crowd,
                    area=segment.area,
                )
                for segment in record.segments or ()
            ],
            found.segment_ids,
            categories,
        )
        self.tally.add(matches)
        self._quality_of_image[record.image_id] = matches.quality

    def _take_instances(self, record: CocoRecord, found: FoundSegments) -> None:
        self.instance_image_ids.append(record.image_id)
        self.instances += [
            mask_result(
                image_id=record.image_id,
                category_id=self.category_ids[instance.class_id],
                score=instance.score,
                region=instance.region,
            )
            for instance in found.instances
        ]


def _panoptic_values(scores: PanopticScores) -> Values:
    values: Values = {}
    for suffix, group in (("", scores.all), ("_things", scores.things), ("_stuff", scores.stuff)):
        values[f"pq{suffix}"] = 100 * group.pq
        values[f"sq{suffix}"] = 100 * group.sq
        values[f"rq{suffix}"] = 100 * group.rq
    return values
