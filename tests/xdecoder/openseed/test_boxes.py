import torch

from xdecoder.openseed.boxes import (
    cxcywh,
    generalised_iou,
    intersection_over_union,
    logit,
    sine_boxes,
    xyxy,
)


def test_corners_and_centres_are_inverse():
    boxes = torch.tensor([[1.0, 2, 5, 10], [0, 0, 0.5, 0.25]])
    assert cxcywh(boxes)[0].tolist() == [3, 6, 4, 8]
    assert xyxy(cxcywh(boxes)).equal(boxes)


def test_overlaps_of_boxes_that_share_a_quarter_touch_nest_or_are_far():
    first = torch.tensor([0.0, 0, 4, 2])
    others = torch.tensor([[2.0, 1, 6, 3], [4, 0, 8, 2], [1, 0, 2, 2], [8, 0, 12, 2]])
    iou = intersection_over_union(first, others)
    assert torch.allclose(iou, torch.tensor([2 / 14, 0, 2 / 8, 0]), atol=1e-5)
    giou = generalised_iou(first, others)
    # the enclosing boxes have 18, 16, 8 and 24 square pixels
    expected = torch.tensor([2 / 14 - 4 / 18, 0, 2 / 8, -8 / 24])
    assert torch.allclose(giou, expected, atol=1e-5)


def test_empty_boxes_overlap_nothing_and_stay_finite():
    empty = torch.zeros(4)
    assert intersection_over_union(empty, empty).item() == 0
    assert torch.isfinite(generalised_iou(empty, empty))


def test_logit_undoes_the_sigmoid_and_is_finite_at_the_ends():
    values = torch.tensor([0.2, 0.5, 0.9])
    assert torch.allclose(logit(values).sigmoid(), values, atol=1e-6)
    assert torch.isfinite(logit(torch.tensor([0.0, 1.0, -3.0, 7.0]))).all()


def test_box_positions_start_with_the_row():
    """Two boxes that differ in y only differ in the first quarter only."""
    boxes = torch.tensor([[0.3, 0.1, 0.2, 0.4], [0.3, 0.8, 0.2, 0.4]])
    low, high = sine_boxes(boxes, 8)
    assert low.shape == (16,)
    differs = (low != high).nonzero()[:, 0].tolist()
    assert differs
    assert max(differs) < 4
