"""AP of the objects of a split: of masks where there are any, and of boxes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.data.coco import CocoRecord, encode_rle
from pipelines.data.records import Category, Instance
from pipelines.evaluation.instance import (
    InstanceScores,
    box_of_mask,
    box_result,
    coco_of,
    mask_result,
    score_instances,
)
from pipelines.evaluation.predictor import FoundSegments
from pipelines.evaluation.stage import Answer, Values

_PREFIX = {"segm": "", "bbox": "box_"}


class ObjectTally:
    """Counts objects. Every image with a list of objects counts for boxes.

    Masks are compared where the split has any: in images whose objects all have one.
    """

    def __init__(self, categories: Sequence[Category]) -> None:
        self._categories = categories
        self._ids = [category.id for category in categories]
        self._masks: list[dict[str, Any]] = []
        self._boxes: list[dict[str, Any]] = []
        self._records: list[CocoRecord] = []

    def answer(self, record: CocoRecord, found: FoundSegments) -> Answer:
        """Masks and boxes that were found in an image, as entries of COCO results."""
        masks = [
            mask_result(
                image_id=record.image_id,
                category_id=self._ids[each.class_id],
                score=each.score,
                region=each.region,
            )
            for each in found.instances
        ]
        if found.boxes is None:
            boxes = [_boxed(row) for row in masks]
        else:
            boxes = [
                box_result(
                    image_id=record.image_id,
                    category_id=self._ids[each.class_id],
                    score=each.score,
                    box_xywh_px=each.box_xywh_px,
                )
                for each in found.boxes
            ]
        return {"instances": masks, "boxes": boxes}

    def take(self, record: CocoRecord, answer: Answer) -> None:
        """Count one image."""
        self._masks += answer["instances"]
        self._boxes += answer["boxes"]
        self._records.append(record)

    def result(self, by_class: dict[int, Values]) -> tuple[Values, dict[str, Any]]:
        """Percentages by key and counts; AP by class goes to `by_class`."""
        masked = self._with_masks()
        values: Values = {}
        details = {
            "num_images_instances": len(masked),
            "num_images_boxes": len(self._records),
        }
        for kind, records, found in (
            ("segm", masked, self._masks),
            ("bbox", self._records, self._boxes),
        ):
            if records:
                scores = self._score(kind, records, found)
                values |= _values(scores, _PREFIX[kind])
                for key, value in scores.per_class_ap.items():
                    by_class.setdefault(key, {})[f"{_PREFIX[kind]}ap"] = 100 * value
        return values, details

    def write_predictions(self, folder: Path) -> None:
        """COCO's results of masks and of boxes."""
        if self._records:
            (folder / "boxes.json").write_text(json.dumps(self._boxes))
        if self._with_masks():
            (folder / "instances.json").write_text(json.dumps(self._masks))

    def _with_masks(self) -> list[CocoRecord]:
        has_any = any(_has_mask(each) for record in self._records for each in _objects(record))
        return [r for r in self._records if has_any and all(map(_has_mask, _objects(r)))]

    def _score(
        self, kind: str, records: Sequence[CocoRecord], found: Sequence[dict[str, Any]]
    ) -> InstanceScores:
        images = [
            {"id": r.image_id, "height": r.size_hw[0], "width": r.size_hw[1]} for r in records
        ]
        # ids are our own: the official tool takes 0 for "not matched"
        owned = [(record, each) for record in records for each in _objects(record)]
        truth = coco_of(
            {
                "images": images,
                "annotations": [
                    {"id": number, **_annotation(record, each)}
                    for number, (record, each) in enumerate(owned, start=1)
                ],
                "categories": [{"id": c.id, "name": c.name} for c in self._categories],
            }
        )
        ids = [record.image_id for record in records]
        return score_instances(truth=truth, results=found, image_ids=ids, kind=kind)


def _objects(record: CocoRecord) -> tuple[Instance, ...]:
    return record.instances or ()


def _has_mask(instance: Instance) -> bool:
    return bool(instance.segmentation)


def _annotation(record: CocoRecord, instance: Instance) -> dict[str, Any]:
    shape = {}
    if _has_mask(instance):
        shape = {"segmentation": encode_rle(instance.segmentation, record.size_hw)}
    return {
        "image_id": record.image_id,
        "category_id": instance.category_id,
        **shape,
        "area": instance.area,
        "bbox": list(instance.bbox_xywh_px),
        "iscrowd": int(instance.is_crowd),
    }


def _boxed(row: dict[str, Any]) -> dict[str, Any]:
    return box_result(
        image_id=row["image_id"],
        category_id=row["category_id"],
        score=row["score"],
        box_xywh_px=box_of_mask(row["segmentation"]),
    )


def _values(scores: InstanceScores, prefix: str) -> Values:
    parts = (("ap", scores.ap), ("ap50", scores.ap50), ("ap75", scores.ap75))
    return {f"{prefix}{name}": 100 * value for name, value in parts}
