from dataclasses import replace

import pytest
import torch

from xdecoder.batch import BoxTargets, SegmentTargets
from xdecoder.config import ConfigError
from xdecoder.losses.draws import Draws
from xdecoder.losses.points import PointSampling
from xdecoder.losses.world import World
from xdecoder.openseed.config import AssistanceConfig, BoxLossConfig, DenoisingConfig
from xdecoder.openseed.criterion import box_losses
from xdecoder.openseed.targets import BoxedTargets
from xdecoder.openseed.task import BoxedSegmentationTask, DetectionTask
from xdecoder.tasks.multi_task import MultiTask

# every decoded mask is good enough
_ALL_MASKS = AssistanceConfig(minimum_iou=0.0, minimum_quality=0.0)
_NO_MASKS = AssistanceConfig(is_on=False)


def _tasks(model, **changes):
    config = BoxLossConfig(
        points=PointSampling(num_points=50), denoising=DenoisingConfig(num_queries=10)
    )
    config = replace(config, **changes)
    kinds = (BoxedSegmentationTask, DetectionTask)
    return MultiTask(
        model, [kind(config=config, templates=("{}.",), world=World()) for kind in kinds]
    )


@pytest.mark.parametrize("which", ["masks", "boxes", "both"])
@pytest.mark.parametrize("assistance", [_ALL_MASKS, _NO_MASKS])
def test_every_parameter_has_a_gradient_whatever_the_step_holds(
    tiny_model, segmentation_batch, detection_batch, which, assistance
):
    batches = {"masks": [segmentation_batch], "boxes": [detection_batch]}
    chosen = batches.get(which, [segmentation_batch, detection_batch])
    terms = _tasks(tiny_model, assistance=assistance)(chosen, Draws(1))
    total = sum(terms.values())
    assert torch.isfinite(total)
    total.backward()
    missing = [name for name, each in tiny_model.named_parameters() if each.grad is None]
    assert missing == []


def test_boxes_without_masks_have_mask_terms_only_with_assistance(tiny_model, detection_batch):
    with_masks = _tasks(tiny_model, assistance=_ALL_MASKS)([detection_batch], Draws(1))
    without = _tasks(tiny_model, assistance=_NO_MASKS)([detection_batch], Draws(1))
    assert any("mask" in key and value > 0 for key, value in with_masks.items())
    assert not any("mask" in key for key in without)


def test_decoded_masks_that_are_not_good_enough_teach_nothing(tiny_model, detection_batch):
    strict = AssistanceConfig(minimum_iou=0.0, minimum_quality=1.0)
    terms = _tasks(tiny_model, assistance=strict)([detection_batch], Draws(1))
    assert all(value == 0 for key, value in terms.items() if "mask" in key)


def test_the_switch_takes_mask_terms_from_disturbed_targets_only(tiny_model, segmentation_batch):
    terms = _tasks(tiny_model, learns_conditioned_masks=False)([segmentation_batch], Draws(1))
    assert "segmentation/mask_bce/2" in terms
    assert not any("mask" in key and "_dn" in key for key in terms)
    assert "segmentation/box_l1_dn/2" in terms


def test_names_of_stuff_fall_to_learned_queries(tiny_model, segmentation_batch):
    names = torch.nn.functional.normalize(torch.randn(3, 40), dim=1)
    pyramid = tiny_model.encode_images(segmentation_batch.images)
    output = tiny_model.decode(pyramid, names)
    targets = BoxedTargets(
        counts=(2, 1),
        class_ids=torch.tensor([0, 2, 2]),
        boxes_cxcywh01=torch.full((3, 4), 0.4),
        is_thing=torch.tensor([True, False, False]),
    )
    for boundary in (12, None):
        found = box_losses(output, targets, Draws(0), BoxLossConfig(), num_thing_queries=boundary)
        for pairs in (named.pairs for named in found):
            queries = dict(zip(pairs.target.tolist(), pairs.query_index.tolist(), strict=True))
            if boundary:
                assert queries[0] < 12 <= min(queries[1], queries[2])
    assert output.num_foreground == 12


def test_images_without_targets_and_emptied_segments_are_fine(tiny_model, segmentation_batch):
    masks = torch.zeros(1, 90, 120, dtype=torch.bool)
    emptied = SegmentTargets(masks=masks, class_ids=torch.tensor([0]))
    batch = replace(segmentation_batch, segments=(emptied, emptied))
    total = sum(_tasks(tiny_model)([batch], Draws(1)).values())
    assert torch.isfinite(total)
    total.backward()


def test_infinite_scores_are_reported_by_name(tiny_model, detection_batch):
    with torch.no_grad():
        tiny_model.decoder.heads.box_mlp.layers[-1].bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"prediction final has inf or nan in .*boxes_cxcywh01"):
        _tasks(tiny_model, assistance=_NO_MASKS)([detection_batch], Draws(1))


def test_boxes_are_compared_as_shares_of_the_padded_image(tiny_model, detection_batch):
    """The same box in a wider batch is another share; the loss must see that."""
    wide = torch.zeros(2, 3, 90, 220)
    wide[..., :120] = detection_batch.images
    tasks = _tasks(tiny_model, assistance=_NO_MASKS)
    terms = tasks([replace(detection_batch, images=wide)], Draws(1))
    assert torch.isfinite(sum(terms.values()))
    far = BoxTargets(
        boxes_xyxy_px=torch.tensor([[130.0, 10, 210, 80], [5, 50, 90, 88]]),
        class_ids=torch.tensor([0, 1]),
    )
    moved = replace(detection_batch, images=wide, boxes=(far, detection_batch.boxes[1]))
    other = tasks([moved], Draws(1))
    assert other["detection/box_l1_dn/2"] != terms["detection/box_l1_dn/2"]


def test_thresholds_outside_their_range_are_refused():
    with pytest.raises(ConfigError, match=r"minimum_iou and minimum_quality must be in 0..1"):
        AssistanceConfig(minimum_iou=1.5)


@pytest.mark.parametrize("kind", ["none", "too many"])
def test_ranks_without_usable_targets_have_the_terms_and_parameters_of_the_others(
    tiny_model, segmentation_batch, detection_batch, kind
):
    """ZeRO adds gradients in the order in which parameters are used, on every rank."""
    tasks = _tasks(tiny_model, assistance=_ALL_MASKS)
    usual = tasks([segmentation_batch, detection_batch], Draws(1))
    if kind == "none":
        segments, boxes = segmentation_batch.segments[0], detection_batch.boxes[1]
        nothing = SegmentTargets(masks=segments.masks[:0], class_ids=segments.class_ids[:0])
        segmentation_batch = replace(segmentation_batch, segments=(nothing, nothing))
        detection_batch = replace(detection_batch, boxes=(boxes, boxes))
    else:
        denoising = DenoisingConfig(num_queries=1)
        tasks = _tasks(tiny_model, assistance=_ALL_MASKS, denoising=denoising)
    terms = tasks([segmentation_batch, detection_batch], Draws(1))
    assert list(terms) == list(usual)
    sum(terms.values()).backward()
    assert [name for name, each in tiny_model.named_parameters() if each.grad is None] == []
