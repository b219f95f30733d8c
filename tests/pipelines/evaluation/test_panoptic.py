import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.coco import read_segment_ids
from pipelines.evaluation.panoptic import (
    PanopticPredictions,
    PanopticTally,
    SegmentMatches,
    TrueSegment,
    match_segments,
    segments_png,
)


def image(matched: list[tuple[int, float]], missed: list[int], invented: list[int]):
    return SegmentMatches(matched=tuple(matched), missed=tuple(missed), invented=tuple(invented))


def test_qualities_by_hand() -> None:
    tally = PanopticTally(is_thing={7: True, 11: True, 300: False, 301: False})
    tally.add(image([(7, 0.75), (300, 1.0)], missed=[7], invented=[11]))
    tally.add(image([(7, 0.625)], missed=[], invented=[]))
    scores = tally.result()
    assert (scores.per_class[7].sq, scores.per_class[7].rq) == (0.6875, 2 / 2.5)
    assert scores.per_class[7].pq == 1.375 / 2.5
    assert scores.per_class[11].pq == 0
    assert (scores.all.num_classes, scores.things.num_classes, scores.stuff.num_classes) == (
        3,
        2,
        1,
    )
    assert scores.all.pq == pytest.approx((1.375 / 2.5 + 0 + 1) / 3)


def test_nothing_taken_is_not_a_number() -> None:
    assert np.isnan(PanopticTally(is_thing={7: True}).result().all.pq)


def test_void_leaves_the_union_and_forgives() -> None:
    truth = np.array([[1, 1, 1, 1, 0, 0, 0, 0]])
    found = np.array([[5, 5, 5, 5, 5, 5, 6, 6]])
    matches = match_segments(truth, [TrueSegment(id=1, category_id=7)], found, {5: 7, 6: 7})
    assert matches == image([(7, 1.0)], missed=[], invented=[])


def test_a_crowd_is_never_missed_and_forgives_its_own_class_only() -> None:
    truth = np.full((2, 6), 3)
    crowd = TrueSegment(id=3, category_id=7, is_crowd=True)
    found = np.array([[5, 5, 5, 6, 6, 6]] * 2)
    assert match_segments(truth, [crowd], found, {5: 7, 6: 11}) == image([], [], [11])


def test_the_quality_of_an_image_is_its_panoptic_quality() -> None:
    truth = np.array([[1, 1, 1, 1, 2, 2, 9]])
    found = np.array([[5, 5, 5, 0, 6, 6, 6]])
    segments = [TrueSegment(id=1, category_id=7), TrueSegment(id=2, category_id=11)]
    right = match_segments(truth, segments, found, {5: 7, 6: 11})
    assert right.quality == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert match_segments(truth, segments, found, {5: 11, 6: 11}).quality == pytest.approx(1 / 3)


def test_maps_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one size; got \(2, 3\) and \(3, 2\)"):
        match_segments(np.zeros((2, 3), int), [], np.zeros((3, 2), int), {})


def test_ids_that_only_the_map_or_the_list_has_are_named() -> None:
    with pytest.raises(ValueError, match=r"same ids, without 0; \[4, 8\] occur in only one"):
        match_segments(np.zeros((2, 3), int), [], np.full((2, 3), 4), {8: 7})


def test_categories_that_the_truth_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"among the 1 categories of the ground truth; got \[9\]"):
        PanopticTally(is_thing={7: True}).add(image([], [], [9]))


def test_predictions_are_written_as_coco_writes_them(tmp_path: Path) -> None:
    predictions = PanopticPredictions()
    ids = np.array([[0, 70000, 70000], [5, 5, 0]])
    predictions.add_png(139, segments_png(ids), {70000: 7, 5: 300})
    predictions.write(tmp_path / "panoptic.json")
    row = json.loads((tmp_path / "panoptic.json").read_text())["annotations"][0]
    assert row["segments_info"] == [
        {"id": 5, "category_id": 300},
        {"id": 70000, "category_id": 7},
    ]
    assert (read_segment_ids(tmp_path / "panoptic" / row["file_name"]) == ids).all()
