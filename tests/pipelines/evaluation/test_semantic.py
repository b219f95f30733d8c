from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluation.semantic import IGNORE, SemanticConfusion


def test_means_by_hand_with_three_denominators() -> None:
    confusion = SemanticConfusion(4)
    truth = np.array([[0, 0, 1], [1, 1, IGNORE]])
    predicted = np.array([[0, 2, 1], [1, 0, 3]])
    confusion.add(truth, predicted)
    scores = confusion.result()
    # class 0: 1 of 3, class 1: 2 of 3, class 2: 0 of 1 (only predicted), class 3: only in ignored
    assert scores.per_class[:3].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert np.isnan(scores.per_class[3])
    assert (scores.miou, scores.num_classes_in_mean) == (pytest.approx(1 / 3), 3)
    assert (scores.miou_truth, scores.num_classes_in_truth) == (pytest.approx(1 / 2), 2)
    assert scores.miou_all == pytest.approx(1 / 4)
    assert scores.pixel_accuracy == pytest.approx(3 / 5)


def test_a_missing_prediction_is_a_miss_and_no_false_alarm() -> None:
    confusion = SemanticConfusion(2)
    confusion.add(np.array([[0, 0, 1]]), np.array([[0, -1, 7]]))
    assert confusion.result().per_class.tolist() == [0.5, 0]


def test_merged_parts_equal_the_whole() -> None:
    random = np.random.default_rng(0)
    images = [(random.integers(0, 5, (7, 9)), random.integers(0, 5, (7, 9))) for _ in range(4)]
    whole, first, second = (SemanticConfusion(5) for _ in range(3))
    for index, (truth, predicted) in enumerate(images):
        whole.add(truth, predicted)
        (first if index % 2 else second).add(truth, predicted)
    first.merge(second)
    assert (first.counts == whole.counts).all()


def test_nothing_taken_is_not_a_number() -> None:
    assert np.isnan(SemanticConfusion(3).result().miou)


def test_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one size; got \(2, 3\) and \(3, 2\)"):
        SemanticConfusion(3).add(np.zeros((2, 3), int), np.zeros((3, 2), int))


def test_true_classes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be 0..2 or 255; got 0..3. Check the label offset"):
        SemanticConfusion(3).add(np.array([[0, 3]]), np.array([[0, 0]]))


def test_the_published_sample_of_scene_parsing_is_reproduced(shared_dir: Path) -> None:
    folder = shared_dir / "metric_refs" / "semantic_miou" / "ade20k_sampleData"
    confusion = SemanticConfusion(150)
    for path in sorted((folder / "annotations").iterdir()):
        # 0 is "other"; shifted by one it becomes 255, which is ignored
        truth = np.array(Image.open(path)) - np.uint8(1)
        predicted = np.array(Image.open(folder / "predictions" / path.name)) - np.uint8(1)
        confusion.add(truth.astype(int), predicted.astype(int))
    scores = confusion.result()
    assert round(scores.miou_all, 4) == 0.1
    assert (scores.pixel_accuracy, scores.miou, scores.num_classes_in_mean) == (1, 1, 15)
