import pytest
import torch

from xdecoder.losses.criterion import (
    describe_segments,
    grounding_terms,
    label_terms,
    label_weight,
    matched_mask_terms,
    matched_rows,
)
from xdecoder.losses.draws import Draws
from xdecoder.losses.matching import Matching
from xdecoder.losses.points import PointSampling


def matching_of(image_index, query_index, is_matched=None):
    query_index = torch.tensor(query_index)
    matched = torch.ones_like(query_index, dtype=torch.bool)
    return Matching(
        image_index=torch.tensor(image_index),
        query_index=query_index,
        is_matched=matched if is_matched is None else torch.tensor(is_matched),
    )


def test_labels_go_to_their_queries_and_the_rest_is_background():
    # two images, three queries, two classes and background
    probs = torch.tensor([0.5, 0.3, 0.2]).expand(1, 2, 3, 3)
    matching = matching_of([0, 0, 1], [[2, 0, 1]])
    total = label_terms(probs.log(), torch.tensor([0, 1, 1]), matching, 0.1)
    chosen = torch.tensor([0.5, 0.3, 0.3]).log().sum() + 0.1 * 3 * torch.tensor(0.2).log()
    torch.testing.assert_close(total[0], -chosen)
    assert label_weight([2, 1], 3, 0.1) == pytest.approx(3 + 0.1 * 3)


def test_targets_without_a_query_change_no_label():
    probs = torch.rand(1, 1, 2, 4).log_softmax(-1)
    full = matching_of([0, 0], [[1, 0]])
    more = matching_of([0, 0, 0], [[1, 0, 0]], [[True, True, False]])
    ids = torch.tensor([0, 2, 1])
    torch.testing.assert_close(
        label_terms(probs, ids, more, 0.1), label_terms(probs, ids[:2], full, 0.1)
    )
    assert label_weight([3], 2, 0.1) == 2


def test_matched_rows_come_from_the_right_layer_image_and_query():
    rows = torch.arange(2 * 3 * 4).reshape(2, 3, 4, 1).float()
    picked = matched_rows(rows, matching_of([0, 2], [[3, 1], [0, 2]]))
    assert picked[..., 0].tolist() == [[3, 12], [9, 22]]


def masks_problem():
    embeddings = torch.zeros(1, 2, 3, 2)
    # smooth maps, so that most points are far from an edge
    features = torch.nn.functional.interpolate(torch.randn(2, 2, 3, 5), (12, 20), mode="bilinear")
    embeddings[0, 0, 2, 0] = embeddings[0, 1, 1, 1] = 40.0
    targets = torch.stack([features[0, 0], features[1, 1]]) > 0
    return embeddings, features, targets


def test_masks_are_made_from_their_own_image():
    embeddings, features, targets = masks_problem()
    sampling = PointSampling(num_points=80)
    matching = matching_of([0, 1], [[2, 1]])
    good = matched_mask_terms(embeddings, features, targets, matching, (1, 1), Draws(0), sampling)
    bad = matched_mask_terms(
        embeddings, features.flip(0), targets, matching, (1, 1), Draws(0), sampling
    )
    assert good.dice.max() < 0.25 < bad.dice.min()


def test_a_target_without_a_query_costs_no_mask():
    embeddings, features, targets = masks_problem()
    matching = matching_of([0, 1], [[2, 1]], [[True, False]])
    terms = matched_mask_terms(
        embeddings, features, targets, matching, (1, 1), Draws(0), PointSampling(num_points=20)
    )
    assert terms.bce[1].item() == terms.dice[1].item() == 0
    assert terms.bce[0].item() > 0


def test_a_phrase_chooses_among_the_queries_of_its_image():
    similarities = torch.zeros(2, 1, 4)
    similarities[0, 0, 3] = similarities[1, 0, 1] = 30.0
    ids = torch.tensor([1, 2])
    right = grounding_terms(similarities, matching_of([0, 0], [[3, 1]]), ids)
    assert right.abs().max() < 1e-5
    wrong = grounding_terms(similarities, matching_of([0, 0], [[1, 3]]), ids)
    assert wrong.min() > 20


def test_equal_phrases_of_an_image_share_their_queries():
    similarities = torch.zeros(2, 1, 4)
    similarities[:, 0, [1, 3]] = 30.0
    matching = matching_of([0, 0], [[1, 3]])
    shared = grounding_terms(similarities, matching, torch.tensor([7, 7]))
    torch.testing.assert_close(shared, torch.full((2, 1), 2.0).log())


def test_the_same_text_in_another_image_is_another_phrase():
    similarities = torch.zeros(2, 1, 4)
    similarities[0, 0, 1] = similarities[1, 0, 3] = 30.0
    apart = grounding_terms(similarities, matching_of([0, 1], [[1, 3]]), torch.tensor([7, 7]))
    assert apart.max() < 1e-5
    together = grounding_terms(similarities, matching_of([0, 0], [[1, 3]]), torch.tensor([7, 7]))
    assert together.min() > 10


def test_phrases_describe_the_segment_that_they_cover():
    segments = torch.zeros(3, 6, 8, dtype=torch.bool)
    segments[0, :, :3], segments[1, :3, 3:], segments[2, 3:, 3:] = True, True, True
    phrases = torch.stack([segments[2], segments[0], segments[1] | segments[2] | segments[0]])
    none = torch.zeros(0, 6, 8, dtype=torch.bool)
    pairs = describe_segments([none, segments], [none, phrases], 0.5)
    assert pairs.segment.tolist() == [2, 0]
    assert pairs.phrase.tolist() == [0, 1]
    moved = describe_segments([segments, segments], [phrases[2:], phrases], 0.5)
    assert moved.segment.tolist() == [5, 3]
    assert moved.phrase.tolist() == [1, 2]
    assert describe_segments([none], [none], 0.5).segment.tolist() == []
