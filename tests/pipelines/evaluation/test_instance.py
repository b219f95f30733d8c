import numpy as np
import pytest
from pycocotools.coco import COCO

from pipelines.evaluation.instance import (
    coco_of,
    decode_mask,
    encode_mask,
    mask_result,
    score_instances,
)


def blob(top: int, left: int, height: int, width: int) -> np.ndarray:
    region = np.zeros((40, 60), dtype=bool)
    region[top : top + height, left : left + width] = True
    return region


def truth_of_two_images() -> COCO:
    rows = [(1, 3, blob(2, 3, 20, 10)), (1, 5, blob(10, 30, 15, 20)), (2, 3, blob(5, 5, 12, 40))]
    annotations = [
        {
            "id": index + 1,
            "image_id": image_id,
            "category_id": category,
            "segmentation": encode_mask(region),
            "area": int(region.sum()),
            "bbox": [0, 0, 1, 1],
            "iscrowd": 0,
        }
        for index, (image_id, category, region) in enumerate(rows)
    ]
    images = [{"id": image_id, "height": 40, "width": 60} for image_id in (1, 2)]
    categories = [{"id": 3, "name": "cup"}, {"id": 5, "name": "ball"}]
    return coco_of({"images": images, "annotations": annotations, "categories": categories})


def test_a_region_survives_its_code() -> None:
    region = np.random.default_rng(0).random((17, 23)) > 0.5
    assert (decode_mask(encode_mask(region)) == region).all()


def test_the_truth_scores_one_and_a_wrong_class_costs_its_share() -> None:
    truth = truth_of_two_images()
    right = [
        mask_result(image_id=1, category_id=3, score=0.9, region=blob(2, 3, 20, 10)),
        mask_result(image_id=1, category_id=5, score=0.8, region=blob(10, 30, 15, 20)),
        mask_result(image_id=2, category_id=3, score=0.7, region=blob(5, 5, 12, 40)),
    ]
    assert score_instances(truth=truth, results=right, image_ids=[1, 2]).ap == pytest.approx(1)
    wrong = [right[0], {**right[1], "category_id": 3}, right[2]]
    scores = score_instances(truth=truth, results=wrong, image_ids=[1, 2])
    assert scores.per_class_ap[5] == 0
    assert scores.ap < 0.6


def test_only_the_images_asked_for_count() -> None:
    truth = truth_of_two_images()
    rows = [mask_result(image_id=2, category_id=3, score=0.7, region=blob(5, 5, 12, 40))]
    assert score_instances(truth=truth, results=rows, image_ids=[2]).ap == pytest.approx(1)
    assert score_instances(truth=truth, results=rows, image_ids=[1, 2]).ap < 0.9


def test_no_results_score_zero() -> None:
    truth = truth_of_two_images()
    assert score_instances(truth=truth, results=[], image_ids=[1, 2]).ap == 0


def test_sizes_are_those_of_masks_where_results_carry_boxes() -> None:
    truth = truth_of_two_images()
    rows = [
        mask_result(image_id=1, category_id=3, score=0.9, region=blob(2, 3, 20, 10)),
        # a small false alarm in a box that is not small
        mask_result(image_id=1, category_id=3, score=0.95, region=blob(30, 40, 5, 5)),
    ]
    boxed = [{**row, "bbox": [0, 0, 60, 40]} for row in rows]
    plain, with_boxes = (
        score_instances(truth=truth, results=each, image_ids=[1]) for each in (rows, boxed)
    )
    # one class of two is found, after the false alarm
    assert plain.stats[3] == pytest.approx(0.5 / 2)
    assert plain == with_boxes
