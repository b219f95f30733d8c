"""Masks and boxes of objects: which forms are read, and which mistakes are named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluation.files import score_files
from tests.testing.answer_files import SIZE_HW, detection_pair, edited, refused, written


def test_boxes_sizes_and_ids_that_a_truth_lacks_follow_from_its_masks(tmp_path: Path) -> None:
    found, truth = detection_pair(tmp_path)
    for metric in ("instance", "box"):
        report = score_files(metric, predictions=found, truth=truth)
        assert report["ap"] == pytest.approx(1)
        assert report["notes"] == [
            "annotations are numbered anew: their ids were missing, equal or 0"
        ]
    assert report["ap_large"] is None


@pytest.mark.parametrize(
    "segmentation",
    [
        [[3, 2, 13, 2, 13, 10, 3, 10]],
        {"size": list(SIZE_HW), "counts": [62, 8, *[12, 8] * 9, 350]},
    ],
    ids=["polygons", "plain RLE"],
)
def test_masks_may_be_polygons_or_plain_rle(tmp_path: Path, segmentation: object) -> None:
    found, truth = detection_pair(tmp_path)
    edited(found, lambda rows: rows[0].update(segmentation=segmentation))
    assert score_files("instance", predictions=found, truth=truth)["ap"] == pytest.approx(1)


def test_no_results_score_zero(tmp_path: Path) -> None:
    found, truth = detection_pair(tmp_path)
    assert score_files("instance", predictions=written(found, []), truth=truth)["ap"] == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d[0].update(image_id=9), "every image_id must occur in .*; 1 do not: 9"),
        (lambda d: d[0].update(category_id=9), "every category_id must occur in .*; 1 do not: 9"),
        (lambda d: d[0].pop("score"), "entry 0 must have 'score'"),
        (lambda d: d[0].update(score="high"), "score of entry 0 must be a number; got 'high'"),
        (lambda d: d[0].pop("segmentation"), "entry 0 must have 'segmentation'"),
        (lambda d: d[0]["segmentation"].update(size=[30, 20]), "must be 20x30 like the image; got"),
        (lambda d: d[0].update(segmentation={"size": [20, 30], "counts": [5, 7]}), "sum to 12"),
        (lambda d: d[0].update(segmentation={"counts": "abc"}), "must be RLE .* or polygons"),
    ],
)
def test_mistakes_in_results_are_named(
    tmp_path: Path, change: Callable[[Any], object], text: str
) -> None:
    found, truth = detection_pair(tmp_path)
    refused("instance", edited(found, change), truth, text)


def test_a_box_needs_four_numbers(tmp_path: Path) -> None:
    found, truth = detection_pair(tmp_path)
    edited(found, lambda rows: rows[0].update(bbox=[1, 2, 3]))
    refused(
        "box", found, truth, r"bbox of entry 0 must be \[x, y, width, height\]; got \[1, 2, 3\]"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.pop("images"), "an object with `images`, `annotations`"),
        (lambda d: d["annotations"][0].update(image_id=5), "of entry 0 must be in `images`; got 5"),
        (lambda d: d["images"][0].pop("height"), "image 1 must have height and width"),
    ],
)
def test_mistakes_in_an_instances_file_are_named(
    tmp_path: Path, change: Callable[[Any], object], text: str
) -> None:
    found, truth = detection_pair(tmp_path)
    refused("instance", found, edited(truth, change), text)
