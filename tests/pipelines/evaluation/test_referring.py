import numpy as np
import pytest

from pipelines.evaluation.referring import ReferringOverlap


def row(*columns: int) -> np.ndarray:
    region = np.zeros((2, 10), dtype=bool)
    region[1, list(columns)] = True
    return region


def test_scores_by_hand() -> None:
    overlap = ReferringOverlap()
    assert overlap.add(row(0, 1), row(0, 1)) == 1
    assert overlap.add(row(0, 1, 2, 3), row(0, 1)) == 0.5
    assert overlap.add(row(7), row(0, 1, 2)) == 0
    scores = overlap.result()
    assert scores.ciou == (2 + 2 + 0) / (2 + 4 + 4)
    assert scores.miou == 0.5
    assert scores.precision == pytest.approx((2 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3))
    assert scores.num_sentences == 3


def test_a_sentence_without_any_pixel_counts_as_zero() -> None:
    overlap = ReferringOverlap()
    assert overlap.add(row(), row()) == 0
    assert (overlap.result().ciou, overlap.result().miou) == (0, 0)


def test_counted_pixels_score_like_regions() -> None:
    counted, whole = ReferringOverlap(), ReferringOverlap()
    assert counted.add_pixels(1, 2) == whole.add(row(1), row(1, 2))
    assert counted.result() == whole.result()


def test_a_protocol_may_add_to_each_union() -> None:
    overlap = ReferringOverlap(epsilon=0.5)
    overlap.add(row(0, 1), row(0, 1))
    assert (overlap.result().miou, overlap.result().ciou) == (2 / 2.5, 1)


def test_no_sentence_is_not_a_number() -> None:
    assert np.isnan(ReferringOverlap().result().ciou)


def test_regions_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one size; got \(2, 3\) predicted and \(2, 4\)"):
        ReferringOverlap().add(np.zeros((2, 3), bool), np.zeros((2, 4), bool))
