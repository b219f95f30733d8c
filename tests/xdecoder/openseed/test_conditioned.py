import pytest
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


def _drawn(*rectangles):
    """Logits at a quarter of the canvas, positive in rectangles of (rows, columns)."""
    logits = torch.full((24, 32), -9.0)
    for rows, columns in rectangles:
        logits[rows, columns] = 9.0
    return logits


# of 24 x 32 pixels, those of the three boxes
_OWN = [
    (slice(5, 10), slice(3, 16)),
    (slice(8, 20), slice(19, 26)),
    (slice(6, 18), slice(8, 24)),
]
_FULL = [_drawn(rectangle) for rectangle in _OWN]


def test_masks_are_cut_to_their_boxes(tiny_model, images, monkeypatch):
    _given_logits(monkeypatch, *torch.full((3, 24, 32), 9.0))
    pyramid = _pyramid(tiny_model, images)
    found = assisted(tiny_model, pyramid, _NAMES, _targets(), _LOOSE, _CANVAS_HW)
    # of 128 x 96 pixels, the first box has x 0.1 to 0.5 and y 0.2 to 0.4
    rows, columns = found.masks[0].any(1).nonzero()[:, 0], found.masks[0].any(0).nonzero()[:, 0]
    assert (rows.min(), rows.max()) == (19, 37)
    assert (columns.min(), columns.max()) == (13, 63)
    assert found.masks[0].sum() == 19 * 51


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(_drawn((slice(20, 24), slice(0, 8))), id="elsewhere"),
        pytest.param(_drawn((slice(5, 8), slice(3, 7))), id="in a corner of its box"),
        pytest.param(_drawn((slice(0, 24), slice(0, 32))), id="everywhere"),
        pytest.param(_FULL[0].clamp(max=0.2), id="in doubt"),
    ],
)
def test_masks_that_miss_their_boxes_or_doubt_themselves_do_not_count(
    tiny_model, images, monkeypatch, bad
):
    _given_logits(monkeypatch, bad, *_FULL[1:])
    pyramid = _pyramid(tiny_model, images)
    config = AssistanceConfig(minimum_quality=0.8)
    found = assisted(tiny_model, pyramid, _NAMES, _targets(), config, _CANVAS_HW)
    assert found.has_mask.tolist() == [False, True, True]


def test_boxes_without_a_mask_are_unknown_to_the_others_of_their_image(
    tiny_model, images, monkeypatch
):
    nothing = _drawn()
    _given_logits(monkeypatch, nothing, *_FULL[1:])
    pyramid = _pyramid(tiny_model, images)
    found = assisted(tiny_model, pyramid, _NAMES, _targets(), AssistanceConfig(), _CANVAS_HW)
    assert found.is_unknown[1].sum() == 19 * 51
    assert found.is_unknown[1, 19:38, 13:64].all()
    assert not found.is_unknown[2].any()
    _given_logits(monkeypatch, *_FULL)
    found = assisted(tiny_model, pyramid, _NAMES, _targets(), AssistanceConfig(), _CANVAS_HW)
    assert found.has_mask.all()
    assert not found.is_unknown.any()
