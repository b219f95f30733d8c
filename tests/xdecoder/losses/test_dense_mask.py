"""Focal and dice terms of MaskFormer, from their formulas."""

import pytest
import torch

from xdecoder.losses import dense_mask
from xdecoder.losses.dense_mask import (
    dense_mask_terms,
    pairwise_pixel_terms,
    pixel_terms,
    shrunk_masks,
)


def test_focal_is_cross_entropy_weighted_by_what_is_missing():
    logits = torch.randn(3, 20, dtype=torch.float64)
    targets = (torch.rand(3, 20) > 0.5).double()
    probs = logits.sigmoid()
    right = torch.where(targets == 1, probs, 1 - probs)
    share = torch.where(targets == 1, 0.25, 0.75)
    expected = (-share * (1 - right) ** 2 * right.log()).mean(1)
    torch.testing.assert_close(pixel_terms(logits, targets).bce, expected)


def test_pairs_are_the_terms_of_each_pair():
    logits, targets = torch.randn(4, 30), (torch.rand(3, 30) > 0.5).float()
    pairs = pairwise_pixel_terms(logits, targets)
    for query in range(4):
        for target in range(3):
            one = pixel_terms(logits[query : query + 1], targets[target : target + 1])
            torch.testing.assert_close(pairs.bce[query, target], one.bce[0])
            torch.testing.assert_close(pairs.dice[query, target], one.dice[0])


def test_parts_give_the_terms_of_the_whole(monkeypatch):
    logits, targets = torch.randn(5, 4, 6), torch.rand(5, 16, 24) > 0.5
    whole = dense_mask_terms(logits, targets)
    monkeypatch.setattr(dense_mask, "CHUNK_PIXELS", 2 * 16 * 24)
    for one, other in zip(dense_mask_terms(logits, targets), whole, strict=True):
        torch.testing.assert_close(one, other)


def test_no_masks_have_no_terms_and_a_gradient_path():
    logits = torch.zeros(0, 4, 6, requires_grad=True)
    terms = dense_mask_terms(logits, torch.zeros(0, 16, 24))
    assert terms.bce.shape == (0,)
    terms.dice.sum().backward()


@pytest.mark.parametrize("size_hw", [(2, 3), (4, 6)])
def test_shrunk_masks_take_the_pixel_above_and_left(size_hw):
    masks = torch.rand(2, 8, 12) > 0.5
    step_y, step_x = 8 // size_hw[0], 12 // size_hw[1]
    expected = masks[:, ::step_y, ::step_x].float()
    assert torch.equal(shrunk_masks(masks, size_hw), expected)
