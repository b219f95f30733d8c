import pytest
import torch

from xdecoder.losses.matching import MatchingCosts, NonFiniteCostError, match, pad_targets, usable


def problem(num_queries=4, num_points=50):
    """One image, two targets: query 2 draws the first, query 0 the second."""
    targets = torch.zeros(1, 2, num_points)
    targets[0, 0, :20], targets[0, 1, 30:] = 1, 1
    features = torch.full((num_queries, num_points), -5.0)
    features[2, :20], features[0, 30:] = 5, 5
    return {
        "label_probs": torch.full((1, 1, num_queries, 2), 0.25),
        "mask_embeddings": torch.eye(num_queries)[None, None],
        "point_features": features[None],
        "point_targets": targets,
        "counts": (2,),
        "costs": MatchingCosts(),
    }


def test_matching_picks_the_obvious():
    matching = match(**problem())
    assert matching.query_index.tolist() == [[2, 0]]
    assert matching.is_matched.all()


def test_the_label_decides_between_equal_masks():
    inputs = problem()
    inputs["point_features"][0, 3] = inputs["point_features"][0, 2]
    inputs["label_probs"][0, 0, 3, 0] = 0.5
    assert match(**inputs).query_index.tolist() == [[3, 0]]


def test_every_layer_and_image_is_matched_on_its_own():
    inputs = problem()
    swapped = torch.eye(4)[[2, 1, 0, 3]]
    inputs["mask_embeddings"] = torch.stack([torch.eye(4), swapped])[:, None].repeat(1, 2, 1, 1)
    inputs["label_probs"] = torch.full((2, 2, 4, 2), 0.25)
    inputs["point_features"] = inputs["point_features"].repeat(2, 1, 1)
    # the second image has the second target only
    inputs["point_targets"] = torch.stack(
        [inputs["point_targets"][0], inputs["point_targets"][0].flip(0)]
    )
    inputs["counts"] = (2, 1)
    matching = match(**inputs)
    assert matching.image_index.tolist() == [0, 0, 1]
    assert matching.query_index.tolist() == [[2, 0, 0], [0, 2, 2]]


def test_targets_without_a_query_are_marked():
    inputs = problem(num_queries=3)
    inputs["point_targets"] = torch.rand(1, 5, 50)
    inputs["label_probs"] = torch.rand(1, 1, 3, 5)
    inputs["counts"] = (5,)
    matching = match(**inputs)
    assert matching.is_matched.sum() == 3
    assert sorted(matching.query_index[matching.is_matched].tolist()) == [0, 1, 2]


def test_no_targets_give_an_empty_matching():
    inputs = problem()
    inputs["point_targets"] = torch.zeros(1, 0, 50)
    inputs["label_probs"] = torch.zeros(1, 1, 4, 0)
    inputs["counts"] = (0,)
    matching = match(**inputs)
    assert matching.query_index.shape == (1, 0)
    assert matching.image_index.shape == (0,)


@pytest.mark.parametrize("name", ["label_probs", "point_features", "point_targets"])
def test_a_cost_that_is_not_finite_names_its_tensor(name):
    inputs = problem()
    inputs[name][..., 0] = float("nan")
    shown = "mask_logits" if name == "point_features" else name
    matching = match(**inputs)
    assert f"prediction 0 has inf or nan in {shown}" in matching.complaint
    # an assignment that means nothing, of the same shape
    assert matching.is_matched.all()
    assert matching.last(1).complaint == matching.complaint
    assert match(**problem()).complaint == ""


def test_terms_of_a_matching_with_a_complaint_are_raised_and_not_returned():
    terms = {"seg/dice/0": torch.tensor(2.0)}
    assert usable(terms, ["", ""]) is terms
    with pytest.raises(NonFiniteCostError, match="the second") as found:
        usable(terms, ["", "the second", "the third"])
    assert found.value.terms is terms


def test_targets_are_padded_per_image():
    padded = pad_targets(torch.arange(3.0)[:, None], (1, 0, 2))
    assert padded[..., 0].tolist() == [[0, 0], [0, 0], [1, 2]]
