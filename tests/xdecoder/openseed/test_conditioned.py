from dataclasses import replace

import torch

from xdecoder.openseed.conditioned import assisted, conditioned_masks
from xdecoder.openseed.config import AssistanceConfig
from xdecoder.openseed.targets import BoxedTargets

_NAMES = torch.nn.functional.normalize(torch.arange(120.0).view(3, 40).sin(), dim=1)
_IDS = [torch.tensor([0, 1]), torch.tensor([2])]
_BOXES = [torch.tensor([[0.3, 0.3, 0.4, 0.2], [0.7, 0.6, 0.2, 0.5]]), torch.full((1, 4), 0.5)]


def _pyramid(model, images):
    return model.eval().encode_images(images)


@torch.no_grad()
def test_a_box_gives_its_mask_whatever_else_is_asked(tiny_model, images):
    """Conditioned queries do not change each other where only one is asked."""
    pyramid = _pyramid(tiny_model, images)
    found = conditioned_masks(tiny_model, pyramid, _NAMES, _IDS, _BOXES)
    assert found.mask_logits.shape == (3, *pyramid.mask_features.shape[2:])
    assert ((found.scores > 0) & (found.scores < 1)).all()
    moved = [_BOXES[0].roll(1, 0), _BOXES[1]]
    other = conditioned_masks(tiny_model, pyramid, _NAMES, _IDS, moved)
    assert not torch.allclose(found.mask_logits[0], other.mask_logits[0])
    assert torch.allclose(found.mask_logits[2], other.mask_logits[2], atol=1e-5)


@torch.no_grad()
def test_the_name_of_a_box_matters(tiny_model, images):
    pyramid = _pyramid(tiny_model, images)
    found = conditioned_masks(tiny_model, pyramid, _NAMES, _IDS, _BOXES)
    renamed = [_IDS[0].roll(1), _IDS[1]]
    other = conditioned_masks(tiny_model, pyramid, _NAMES, renamed, _BOXES)
    assert not torch.allclose(found.mask_logits[0], other.mask_logits[0])


@torch.no_grad()
def test_no_boxes_give_no_masks(tiny_model, images):
    empty = [torch.zeros(0, dtype=torch.long)] * 2
    none = [torch.zeros(0, 4)] * 2
    found = conditioned_masks(tiny_model, _pyramid(tiny_model, images), _NAMES, empty, none)
    assert len(found.mask_logits) == len(found.scores) == 0


def test_assistance_keeps_masks_whose_box_fits(tiny_model, images):
    pyramid = _pyramid(tiny_model, images)
    targets = BoxedTargets(
        counts=(2, 1),
        class_ids=torch.cat(_IDS),
        boxes_cxcywh01=torch.cat(_BOXES),
        is_thing=torch.ones(3, dtype=torch.bool),
    )
    loose = AssistanceConfig(minimum_iou=0.0, minimum_score=0.0)
    canvas_hw = (96, 128)
    found = assisted(tiny_model, pyramid, _NAMES, targets, loose, canvas_hw)
    assert found.masks.shape == (3, *canvas_hw)
    assert found.has_mask.all()
    assert not found.masks.requires_grad
    strict = replace(loose, minimum_score=1.0)
    assert not assisted(tiny_model, pyramid, _NAMES, targets, strict, canvas_hw).has_mask.any()
