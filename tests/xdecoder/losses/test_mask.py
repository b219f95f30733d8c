import math

import pytest
import torch
import torch.nn.functional as F

from xdecoder.losses.draws import Draws
from xdecoder.losses.mask import (
    mask_iou,
    pad_masks,
    pairwise_terms,
    point_terms,
    sampled_mask_terms,
    softplus,
)
from xdecoder.losses.points import PointSampling


def test_softplus_and_its_slope_are_torch_s_and_exact_at_zero():
    x = torch.tensor([-1e4, -30.0, -1.0, 0.0, 2.0, 50.0, 1e4], dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    softplus(ours).sum().backward()
    F.softplus(theirs).sum().backward()
    torch.testing.assert_close(softplus(x), F.softplus(x))
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert ours.grad[3] == 0.5


def test_mask_terms_have_their_closed_forms():
    # half of four points are right at probability 3/4, targets 1, 0, 1, 0
    logits = torch.tensor([[math.log(3), math.log(3), -math.log(3), -math.log(3)]])
    terms = point_terms(logits, torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    assert terms.bce.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert terms.dice.item() == pytest.approx(1 - (2 * 1.0 + 1) / (2.0 + 2.0 + 1))


def test_a_right_mask_costs_nothing_and_a_wrong_one_much():
    target = (torch.arange(20) < 8).float()[None]
    right, wrong = (
        point_terms((target * 2 - 1) * 50, target),
        point_terms(-(target * 2 - 1) * 50, target),
    )
    assert right.bce.item() == pytest.approx(0, abs=1e-6)
    assert right.dice.item() == pytest.approx(0, abs=1e-6)
    assert wrong.bce.item() == pytest.approx(50)
    assert wrong.dice.item() == pytest.approx(1 - 1 / 21)


def test_empty_masks_have_finite_terms():
    terms = point_terms(torch.full((1, 7), -50.0), torch.zeros(1, 7))
    assert terms.bce.item() == pytest.approx(0, abs=1e-6)
    assert terms.dice.item() == pytest.approx(0, abs=1e-6)


def test_pairs_are_the_terms_of_every_query_with_every_target():
    logits, targets = torch.randn(2, 5, 30), torch.rand(2, 3, 30)
    pairs = pairwise_terms(logits, targets)
    for query in range(5):
        for target in range(3):
            single = point_terms(logits[:, query], targets[:, target])
            torch.testing.assert_close(pairs.bce[:, query, target], single.bce)
            torch.testing.assert_close(pairs.dice[:, query, target], single.dice)


@pytest.mark.parametrize("is_shared", [False, True])
def test_rows_and_columns_of_a_mask_are_not_exchanged(is_shared):
    target = torch.zeros(1, 24, 40, dtype=torch.bool)
    target[0, 4:8, 4:36] = True
    logits = (target.float() * 2 - 1)[None] * 9
    sampling = PointSampling(num_points=200, is_shared_by_layers=is_shared)
    same = sampled_mask_terms(logits.expand(1, 2, -1, -1), target, Draws(0), sampling)
    assert same.dice.max() < 0.2
    turned = F.interpolate(logits.transpose(2, 3), (24, 40))
    assert sampled_mask_terms(turned, target, Draws(0), sampling).dice.min() > 0.5


@pytest.mark.parametrize("is_shared", [False, True])
def test_layers_are_compared_with_their_own_mask(is_shared):
    targets = torch.zeros(2, 16, 24, dtype=torch.bool)
    targets[0, :, :8], targets[1, :6] = True, True
    right = (targets.float() * 2 - 1) * 9
    maps = torch.stack([-right, right], dim=1)
    sampling = PointSampling(num_points=100, is_shared_by_layers=is_shared)
    terms = sampled_mask_terms(maps, targets, Draws(0), sampling)
    assert terms.bce.shape == (2, 2)
    assert terms.dice[:, 0].min() > 0.5
    assert terms.dice[:, 1].max() < 0.2


def test_shared_points_lie_where_the_last_layer_is_uncertain():
    # the first layer is undecided at the left and wrong to its right; the last is right
    x = torch.arange(40.0)
    first, last = (x - 5).expand(12, 40), (x - 35).expand(12, 40)
    target = (x > 35).expand(12, 40)[None]
    sampling = PointSampling(num_points=100, importance=1.0, is_shared_by_layers=True)
    shared = sampled_mask_terms(torch.stack([first, last])[None], target, Draws(0), sampling)
    own = sampled_mask_terms(
        torch.stack([first, last])[None],
        target,
        Draws(0),
        PointSampling(num_points=100, importance=1.0),
    )
    torch.testing.assert_close(shared.bce[0, 1], own.bce[0, 1])
    assert shared.bce[0, 0] > 2 * own.bce[0, 0]


def test_padding_keeps_masks_in_the_upper_left_corner():
    padded = pad_masks(torch.ones(2, 3, 5, dtype=torch.bool), (4, 8))
    assert padded.shape == (2, 4, 8)
    assert padded[:, :3, :5].all()
    assert padded.sum() == 2 * 15


def test_masks_larger_than_the_canvas_are_refused():
    with pytest.raises(ValueError, match=r"must fit into 4x8 \(height x width\); got 3x9"):
        pad_masks(torch.ones(2, 3, 9), (4, 8))


def test_iou_is_overlap_over_union_and_zero_for_empty_masks():
    first = torch.zeros(2, 4, 6, dtype=torch.bool)
    first[0, :2] = True
    second = torch.zeros(1, 4, 6, dtype=torch.bool)
    second[0, 1:3] = True
    assert mask_iou(first, second)[:, 0].tolist() == pytest.approx([6 / 18, 0.0])
