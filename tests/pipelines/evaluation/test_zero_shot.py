import numpy as np
import pytest

from pipelines.evaluation.zero_shot import PairNaming, best_overlapping

PAIRS = [("red", "cup"), ("red", "ring"), ("blue", "cup"), ("blue", "ring")]


def test_names_and_halves_are_counted_apart() -> None:
    naming = PairNaming(PAIRS)
    naming.add(("red", "cup"), 0)
    naming.add(("red", "cup"), 1)
    naming.add(("blue", "ring"), 2)
    naming.add(("blue", "ring"), 3)
    scores = naming.result()
    assert (scores.top1, scores.attribute, scores.noun, scores.chance) == (0.5, 1, 0.5, 0.25)
    assert scores.top1_shuffled == 0
    assert scores.num_objects == 4


def test_one_answer_for_all_is_not_better_than_its_control() -> None:
    naming = PairNaming(PAIRS)
    for index in range(12):
        naming.add(PAIRS[index % 3], 1)
    assert naming.result().top1 == naming.result().top1_shuffled == pytest.approx(1 / 3)


def test_the_best_region_is_found() -> None:
    truth = np.zeros((4, 6), dtype=bool)
    truth[1:3, 1:5] = True
    regions = np.stack([np.ones_like(truth), np.roll(truth, 1, axis=1), np.zeros_like(truth)])
    assert best_overlapping(regions, truth) == (1, pytest.approx(6 / 10))


@pytest.mark.parametrize(("truth", "answer"), [(("red", "dog"), 0), (("red", "cup"), 4)])
def test_a_truth_or_answer_that_is_no_candidate_is_refused(
    truth: tuple[str, str], answer: int
) -> None:
    with pytest.raises(ValueError, match=rf"among 4 candidates; got .* and {answer}\."):
        PairNaming(PAIRS).add(truth, answer)
