from dataclasses import replace

import torch

from xdecoder.openseed import conditioned
from xdecoder.openseed.conditioned import ConditionedMasks, assisted, conditioned_masks
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


_LOOSE = AssistanceConfig(minimum_iou=0.0, minimum_quality=0.0)
_CANVAS_HW = (96, 128)


def _targets():
    return BoxedTargets(
        counts=(2, 1),
        class_ids=torch.cat(_IDS),
        boxes_cxcywh01=torch.cat(_BOXES),
        is_thing=torch.ones(3, dtype=torch.bool),
    )


def _given_logits(monkeypatch, *maps):
    """Let the model decode these, at a quarter of the canvas."""
    found = ConditionedMasks(torch.stack(maps), torch.ones(len(maps)))
    monkeypatch.setattr(conditioned, "conditioned_masks", lambda *_: found)


def test_assistance_decodes_masks_without_gradients(tiny_model, images):
    pyramid = _pyramid(tiny_model, images)
    found = assisted(tiny_model, pyramid, _NAMES, _targets(), _LOOSE, _CANVAS_HW)
    assert found.masks.shape == (3, *_CANVAS_HW)
    assert found.has_mask.all()
    assert not found.masks.requires_grad


def test_masks_are_cut_to_their_boxes(tiny_model, images, monkeypatch):
    everywhere = torch.full((24, 32), 9.0)
    _given_logits(monkeypatch, everywhere, everywhere, everywhere)
    pyramid = _pyramid(tiny_model, images)
    found = assisted(tiny_model, pyramid, _NAMES, _targets(), AssistanceConfig(), _CANVAS_HW)
    # of 128 x 96 pixels, the first box has x 0.1 to 0.5 and y 0.2 to 0.4
    rows, columns = found.masks[0].any(1).nonzero()[:, 0], found.masks[0].any(0).nonzero()[:, 0]
    assert (rows.min(), rows.max()) == (19, 37)
    assert (columns.min(), columns.max()) == (13, 63)
    assert found.masks[0].sum() == 19 * 51
    assert found.has_mask.all()


def test_masks_that_leave_their_box_empty_or_doubt_themselves_do_not_count(
    tiny_model, images, monkeypatch
):
    elsewhere = torch.full((24, 32), -9.0)
    elsewhere[20:, :8] = 9.0
    corner = elsewhere.clone()
    corner[4:6, 2:6] = 9.0
    doubtful = torch.full((24, 32), 0.2)
    pyramid = _pyramid(tiny_model, images)
    sure = torch.full((24, 32), 9.0)
    for bad in (elsewhere, corner, doubtful):
        _given_logits(monkeypatch, bad, sure, sure)
        found = assisted(tiny_model, pyramid, _NAMES, _targets(), AssistanceConfig(), _CANVAS_HW)
        assert found.has_mask.tolist() == [False, True, True]
    _given_logits(monkeypatch, doubtful, sure, sure)
    loose = replace(AssistanceConfig(), minimum_quality=0.5)
    assert assisted(tiny_model, pyramid, _NAMES, _targets(), loose, _CANVAS_HW).has_mask.all()
