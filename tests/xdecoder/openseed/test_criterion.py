from dataclasses import replace

import torch

from xdecoder.losses.draws import Draws
from xdecoder.losses.points import PointSampling
from xdecoder.openseed.config import BoxLossConfig
from xdecoder.openseed.criterion import box_losses
from xdecoder.openseed.outputs import BoxPrediction, OpenSeeDOutput
from xdecoder.openseed.targets import BoxedTargets

_CONFIG = BoxLossConfig(points=PointSampling(num_points=200))


def _output(features):
    """One query, whose mask is the map of features itself, and one prediction."""
    prediction = BoxPrediction(
        torch.zeros(1, 1, 3), torch.full((1, 1, 4), 0.5), torch.ones(1, 1, 1)
    )
    return OpenSeeDOutput(
        selected=prediction,
        layers=(prediction,),
        denoised=(),
        mask_features=features,
        num_foreground=1,
        canvas_hw=(48, 80),
    )


def _mask_losses(features, targets):
    terms = [named.terms for named in box_losses(_output(features), targets, Draws(2), _CONFIG)]
    return torch.stack([part for each in terms for part in (each.mask, each.dice)])


def _target():
    masks = torch.zeros(1, 48, 80, dtype=torch.bool)
    masks[0, 8:24, 8:32] = True
    return BoxedTargets(
        counts=(1,),
        class_ids=torch.tensor([1]),
        boxes_cxcywh01=torch.tensor([[0.25, 0.333, 0.3, 0.333]]),
        is_thing=torch.tensor([True]),
        masks=masks,
    )


def test_what_a_mask_says_of_unknown_pixels_costs_nothing_and_teaches_nothing():
    targets = _target()
    is_unknown = torch.zeros_like(targets.masks)
    is_unknown[0, 16:, 40:] = True
    known = replace(targets, is_unknown=is_unknown)
    good = torch.where(targets.masks[:, None, ::4, ::4], 6.0, -6.0)
    bad = good.clone()
    bad[..., 5:, 12:] = 6.0
    bad.requires_grad_()
    assert (_mask_losses(bad, targets) > _mask_losses(good, targets) + 0.1).all()
    assert torch.allclose(_mask_losses(bad, known), _mask_losses(good, known), atol=1e-6)
    _mask_losses(bad, known).sum().backward()
    assert (bad.grad[..., 5:, 12:] == 0).all()
    assert (bad.grad[..., :5, :8] != 0).any()


def test_unknown_pixels_beside_a_mask_leave_its_edge_alone():
    targets = _target()
    right = torch.where(targets.masks[:, None, ::4, ::4], 6.0, -6.0)
    around = ~targets.masks
    known = replace(targets, is_unknown=around)
    assert (_mask_losses(right, known) <= _mask_losses(right, targets) + 1e-4).all()
    eroded = right.clone()
    eroded[..., 5, :] = -6.0
    assert (_mask_losses(eroded, known) > _mask_losses(right, known) + 0.1).all()
