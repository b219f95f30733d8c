"""AP of masks and boxes over a split, against pycocotools fed by hand."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.data.records import Category, CocoRecord, Instance
from pipelines.evaluation.object_tally import ObjectTally
from pipelines.evaluation.predictor import FoundBox, FoundInstance, FoundSegments

SIZE_HW = (120, 170)
CATEGORIES = tuple(Category(id=n, name=f"c{n}", is_thing=True) for n in (7, 3, 12, 4))
Values = dict[str, float]


def record_of(image_id: int, instances: tuple[Instance, ...]) -> CocoRecord:
    return CocoRecord(
        image_id=image_id, image_path=Path("x.jpg"), size_hw=SIZE_HW, instances=instances
    )


def instance(
    number: int,
    category: int,
    box: tuple[float, ...],
    *,
    has_mask: bool = True,
    crowd: bool = False,
) -> Instance:
    x, y, width, height = box
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return Instance(
        id=number,
        category_id=category,
        segmentation=[corners] if has_mask else [],
        # half of the box, as of a slender mask: it decides small, medium and large
        area=width * height / 2,
        is_crowd=crowd,
        bbox_xywh_px=box,
    )


def seen(boxes: list[FoundBox], instances: tuple[FoundInstance, ...] = ()) -> FoundSegments:
    nothing = np.zeros(SIZE_HW, dtype=np.int64)
    return FoundSegments(
        segment_ids=nothing,
        classes={},
        scores={},
        semantic=nothing,
        instances=instances,
        boxes=tuple(boxes),
    )


def counted(pairs: list[tuple[CocoRecord, FoundSegments]]) -> tuple[Values, dict, dict]:
    tally = ObjectTally(CATEGORIES)
    for record, found in pairs:
        # answers travel between ranks as JSON
        tally.take(record, json.loads(json.dumps(tally.answer(record, found))))
    by_class: dict[int, Values] = {}
    values, details = tally.result(by_class)
    return values, details, by_class


def hostile(rng: np.random.Generator) -> list[tuple[CocoRecord, FoundSegments]]:
    """Crowds, equal scores, boxes of no width, more than a hundred results, images with nothing."""
    pairs, number = [], 1
    for image_id in (9, 2, 40, 5, 31, 6):
        objects = []
        for _ in range(0 if image_id == 5 else 7):
            x, y = rng.uniform(0, 100, 2)
            size = rng.uniform(2, 70, 2)
            category = int(rng.choice([7, 3, 12]))
            crowd = bool(rng.random() < 0.2)
            box = (float(x), float(y), float(size[0]), float(size[1]))
            objects.append(instance(number, category, box, crowd=crowd))
            number += 1
        found = []
        for each in objects * (20 if image_id == 40 else 2):
            place = next(i for i, c in enumerate(CATEGORIES) if c.id == each.category_id)
            shifted = np.array(each.bbox_xywh_px) + rng.normal(0, 4, 4)
            shifted[2:] = shifted[2:].clip(0.1)
            place = place if rng.random() < 0.8 else int(rng.integers(4))
            # scores that are often equal
            score = round(float(rng.random()), 1)
            found.append(FoundBox(place, score, tuple(map(float, shifted))))
        found.sort(key=lambda box: -box.score)
        if image_id == 5:
            found = [FoundBox(1, 0.9, (3.0, 4.0, 0.0, 5.0))]
        if image_id == 6:
            found = []
        pairs.append((record_of(image_id, tuple(objects)), seen(found)))
    return pairs


def official(pairs: list[tuple[CocoRecord, FoundSegments]]) -> tuple[list[float], dict[int, float]]:
    """What pycocotools says of the same boxes, asked without any of our code."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for record, found in pairs:
        for each in record.instances or ():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": each.category_id,
                    "bbox": list(each.bbox_xywh_px),
                    "area": each.area,
                    "iscrowd": int(each.is_crowd),
                }
            )
        for box in found.boxes or ():
            results.append(
                {
                    "image_id": record.image_id,
                    "category_id": CATEGORIES[box.class_id].id,
                    "score": box.score,
                    "bbox": list(box.box_xywh_px),
                }
            )
    truth = COCO()
    height, width = SIZE_HW
    images = [{"id": r.image_id, "height": height, "width": width} for r, _ in pairs]
    categories = [{"id": c.id, "name": c.name} for c in CATEGORIES]
    truth.dataset = {
        "info": {}, "images": images, "annotations": annotations, "categories": categories,
    }  # fmt: skip
    per_class = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats = evaluation.stats.tolist()
        for category in (7, 3, 12):
            evaluation.params.catIds = [category]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            per_class[category] = float(evaluation.stats[0])
    return stats, per_class


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_box_ap_is_that_of_pycocotools(seed: int) -> None:
    pairs = hostile(np.random.default_rng(seed))
    values, _, by_class = counted(pairs)
    stats, per_class = official(pairs)
    assert 1 < values["box_ap"] < 99
    for key, expected in zip(("box_ap", "box_ap50", "box_ap75"), stats, strict=False):
        assert values[key] == pytest.approx(100 * expected, abs=1e-9), key
    for category, expected in per_class.items():
        assert by_class[category]["box_ap"] == pytest.approx(100 * expected, abs=1e-9)
    # a class without objects has no figure
    assert 4 not in by_class


def test_boxes_are_those_of_the_model_and_not_of_its_masks() -> None:
    record = record_of(1, (instance(1, 7, (10, 20, 30, 40)),))
    region = np.zeros(SIZE_HW, dtype=bool)
    region[20:60, 10:40] = True
    mask = (FoundInstance(0, 0.9, region),)
    right, wrong = FoundBox(0, 0.5, (10, 20, 30, 40)), FoundBox(0, 0.5, (60, 20, 30, 40))
    for box, expected in ((right, 100), (wrong, 0)):
        values, _, _ = counted([(record, seen([box], mask))])
        assert values["box_ap"] == pytest.approx(expected)
        assert values["ap"] == pytest.approx(100)


def test_a_model_without_boxes_is_scored_by_those_around_its_masks() -> None:
    record = record_of(1, (instance(1, 7, (10, 20, 30, 40)),))
    # a mask that misses half of the object and has its box
    region = np.zeros(SIZE_HW, dtype=bool)
    region[20:60, 10:12] = region[20:60, 38:40] = region[20:22, 10:40] = True
    found = seen([], (FoundInstance(0, 0.9, region),))
    found = FoundSegments(**{**vars(found), "boxes": None})
    values, _, _ = counted([(record, found)])
    assert values["box_ap"] == pytest.approx(100)
    assert values["ap"] == 0


def test_boxes_without_masks_are_scored_as_boxes_only() -> None:
    boxed = instance(1, 7, (10, 20, 30, 40), has_mask=False)
    pairs = [
        (record_of(1, (boxed,)), seen([FoundBox(0, 0.5, (10, 20, 30, 40))])),
        (record_of(2, ()), seen([])),
    ]
    values, details, by_class = counted(pairs)
    assert set(values) == {"box_ap", "box_ap50", "box_ap75"}
    assert values["box_ap"] == pytest.approx(100)
    assert details == {"num_images_instances": 0, "num_images_boxes": 2}
    assert set(by_class[7]) == {"box_ap"}


def test_an_image_with_a_box_only_does_not_count_for_masks() -> None:
    region = np.zeros(SIZE_HW, dtype=bool)
    region[20:60, 10:40] = True
    masked = record_of(1, (instance(1, 7, (10, 20, 30, 40)),))
    mixed = record_of(2, (instance(2, 7, (1, 2, 30, 40), has_mask=False), instance(3, 3, (5,) * 4)))
    pairs = [(masked, seen([], (FoundInstance(0, 0.9, region),))), (mixed, seen([]))]
    values, details, by_class = counted(pairs)
    assert details == {"num_images_instances": 1, "num_images_boxes": 2}
    assert values["ap"] == pytest.approx(100)
    assert values["box_ap"] == 0
    assert set(by_class[3]) == {"box_ap"}


def test_results_are_written_in_the_official_format(tmp_path: Path) -> None:
    tally = ObjectTally(CATEGORIES)
    record = record_of(1, (instance(1, 7, (10, 20, 30, 40), has_mask=False),))
    tally.take(record, tally.answer(record, seen([FoundBox(2, 0.5, (10.5, 20, 30, 40))])))
    tally.write_predictions(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["boxes.json"]
    assert json.loads((tmp_path / "boxes.json").read_text()) == [
        {"image_id": 1, "category_id": 12, "score": 0.5, "bbox": [10.5, 20, 30, 40]}
    ]
