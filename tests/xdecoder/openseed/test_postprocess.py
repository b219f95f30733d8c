"""What is made of a decoder's output, with outputs written by hand: geometry, choices, masks."""

from dataclasses import replace

import pytest
import torch

from xdecoder import postprocess as shared
from xdecoder.openseed import postprocess
from xdecoder.openseed.boxes import cxcywh
from xdecoder.openseed.outputs import BoxPrediction, OpenSeeDOutput

# of an image that was seen at 60 x 100 pixels
_BOXES_PX = torch.tensor([[10.0, 6, 40, 24], [50, 30, 100, 60], [0, 0, 100, 12]])


def written(canvas_hw, *, logits=None, num_foreground=2, quarter=None):
    """An output that says `_BOXES_PX` in its padded frame."""
    height, width = canvas_hw
    boxes = cxcywh(_BOXES_PX / torch.tensor([width, height] * 2))
    logits = torch.tensor([[2.0, -1, -3], [-2, 1, 0], [-4, -3, 3]]) if logits is None else logits
    features = torch.zeros(1, 2, height // 4, width // 4) if quarter is None else quarter
    prediction = BoxPrediction(logits[None], boxes[None], torch.ones(1, len(logits), 2))
    return OpenSeeDOutput(
        selected=prediction,
        layers=(prediction,),
        denoised=(),
        mask_features=features,
        num_foreground=num_foreground,
        canvas_hw=canvas_hw,
    )


def seen(canvas_hw=(64, 128), out_hw=(60, 100), **changes):
    output = written(canvas_hw, **changes)
    return postprocess.image_prediction(output, 0, image_hw=(60, 100), out_hw=out_hw)


@pytest.mark.parametrize("canvas_hw", [(60, 100), (64, 128), (96, 160)])
def test_padding_does_not_move_a_box(canvas_hw):
    torch.testing.assert_close(seen(canvas_hw).boxes_xyxy_px, _BOXES_PX)


@pytest.mark.parametrize("out_hw", [(120, 200), (30, 50), (90, 300)])
def test_boxes_scale_with_the_picture(out_hw):
    factor = torch.tensor([out_hw[1] / 100, out_hw[0] / 60] * 2)
    torch.testing.assert_close(seen(out_hw=out_hw).boxes_xyxy_px, _BOXES_PX * factor)


def test_detections_are_of_objects_and_things_from_the_surest_on():
    found = postprocess.detections(seen(), top_k=9, is_thing=(True, True, False))
    # the third query is learned, the third name is stuff
    assert found.query.tolist() == [0, 1, 0, 1]
    assert found.class_ids.tolist() == [0, 1, 1, 0]
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 1, -1, -2]).sigmoid())
    torch.testing.assert_close(found.boxes_xyxy_px, _BOXES_PX[[0, 1, 0, 1]])
    few = postprocess.detections(seen(), top_k=2, minimum_score=0.8)
    assert few.query.tolist() == [0]


def test_masks_made_one_by_one_are_those_made_together():
    """The two steps to the size of the picture, whatever asks for the masks."""
    quarter = torch.randn(1, 2, 16, 32)
    prediction = seen(out_hw=(75, 130), quarter=quarter)
    step = shared.resize_masks(
        torch.ones(3, 2).matmul(quarter[0].flatten(1)).unflatten(1, (16, 32)),
        canvas_hw=(64, 128),
        valid_hw=(60, 100),
        out_hw=(60, 100),
    )
    expected = shared.resize_masks(
        step, canvas_hw=(60, 100), valid_hw=(60, 100), out_hw=(75, 130), mode="bicubic_antialias"
    )
    torch.testing.assert_close(prediction.masks.whole(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prediction.masks[2], expected[2], rtol=1e-4, atol=1e-5)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(prediction.masks.of(rows)[1], prediction.masks[0])


def test_the_map_of_names_is_the_loudest_of_the_scores():
    quarter = torch.randn(1, 2, 16, 32)
    prediction = seen(quarter=quarter)
    scores = postprocess.semantic(prediction)
    ids = postprocess.semantic_ids(prediction)
    assert ids.shape == (60, 100)
    # a pixel may change sides where two names are equal up to rounding
    assert (scores.argmax(0) == ids).float().mean() > 0.999


def test_a_segment_needs_one_similarity_above_the_threshold():
    quarter = torch.full((1, 2, 16, 32), 3.0)
    logits = torch.tensor([[1.0, -2, -3], [0.5, -3, -3], [-2, -2, -1.5]])
    prediction = seen(quarter=quarter, logits=logits)
    kept = postprocess.panoptic(prediction, is_thing=(True, True, True), overlap_threshold=0.0)
    assert [segment.class_id for segment in kept.segments] == [0]
    none = postprocess.panoptic(prediction, is_thing=(True,) * 3, object_threshold=0.8)
    assert none.segments == ()
    assert int(none.ids.max()) == 0


def test_instances_are_as_sure_as_name_and_mask_together():
    quarter = torch.zeros(1, 2, 16, 32)
    quarter[..., :16] = 1.0
    found = postprocess.instances(seen(quarter=quarter), top_k=2)
    plain = postprocess.detections(seen(quarter=quarter), top_k=2)
    # the logit is 2 on the left half, where the mask is
    quality = float(torch.tensor(2.0).sigmoid())
    torch.testing.assert_close(found.scores, plain.scores * quality, rtol=2e-2, atol=0)
    torch.testing.assert_close(found.boxes_xyxy_px, plain.boxes_xyxy_px)
    assert found.masks[0, :, :60].all()
    assert not found.masks[0, :, 70:].any()


def test_a_surer_mask_comes_before_a_better_name():
    quarter = torch.zeros(1, 2, 16, 32)
    quarter[:, 0, :, :16], quarter[:, 1, :, 16:] = 0.1, 6.0
    output = written((64, 128), quarter=quarter)
    only = output.layers[-1]._replace(mask_embeddings=torch.eye(3, 2)[None])
    output = replace(output, layers=(only,))
    prediction = postprocess.image_prediction(output, 0, image_hw=(60, 100), out_hw=(60, 100))
    found = postprocess.instances(prediction, top_k=2)
    assert found.class_ids.tolist() == [1, 0]
    torch.testing.assert_close(found.boxes_xyxy_px, _BOXES_PX[[1, 0]])
    assert found.masks[0, :, 70:].all()
    assert found.masks[1, :, :60].all()


def test_texts_are_read_apart():
    first = seen().of_texts(slice(0, 1))
    assert first.scores.shape == (3, 1)
    assert first.size_hw == (60, 100)
    assert postprocess.detections(first, top_k=9).class_ids.tolist() == [0, 0]
