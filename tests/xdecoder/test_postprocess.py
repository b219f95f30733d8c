"""Predictions at full resolution."""

import pytest
import torch
from torch import Tensor

from xdecoder import postprocess
from xdecoder.postprocess import boxes_from_masks, instances, panoptic, resize_masks, semantic


def logits_of(*masks: Tensor, strength: float = 8.0) -> Tensor:
    return (torch.stack(masks).float() * 2 - 1) * strength


def left_of(column: int, height: int = 6, width: int = 10) -> Tensor:
    return (torch.arange(width) < column).expand(height, width)


def probs_of(*class_ids: int, num_classes: int, score: float = 0.95) -> Tensor:
    probs = torch.full((len(class_ids), num_classes + 1), (1 - score) / num_classes)
    probs[torch.arange(len(class_ids)), torch.tensor(class_ids)] = score
    return probs


def test_instances_stand_from_the_best_to_the_worst() -> None:
    masks = logits_of(left_of(3), left_of(7), left_of(5))
    probs = torch.stack([probs_of(0, num_classes=2, score=score)[0] for score in (0.6, 0.9, 0.7)])
    found = instances(probs, masks, top_k=3)
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    assert found.masks.flatten(1).sum(1).tolist() == [6 * 7, 6 * 5, 6 * 3]


def test_results_do_not_depend_on_how_the_work_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, probs = torch.randn(7, 5, 9), torch.rand(7, 4)
    sizes = {"canvas_hw": (20, 36), "valid_hw": (17, 30), "out_hw": (23, 41)}
    whole = resize_masks(logits, **sizes)
    scores = semantic(probs, whole)
    monkeypatch.setattr(postprocess, "CHUNK_ELEMENTS", 2000)
    assert torch.equal(resize_masks(logits, **sizes), whole)
    torch.testing.assert_close(semantic(probs, whole), scores)


def test_padding_is_cut_off_before_the_last_resize() -> None:
    # the right half of the canvas is padding: the map's left half fills the result
    logits = logits_of(left_of(6, height=4, width=12))
    sizes = {"canvas_hw": (16, 48), "valid_hw": (16, 24), "out_hw": (8, 12)}
    assert bool((resize_masks(logits, **sizes) > 0).all())
    whole = resize_masks(logits, canvas_hw=(16, 48), valid_hw=(16, 48), out_hw=(8, 12))
    assert torch.equal(whole[0] > 0, left_of(6, height=8, width=12))


def test_stuff_of_one_class_is_one_segment_and_things_are_not() -> None:
    masks = logits_of(left_of(3), left_of(6) & ~left_of(3), ~left_of(6))
    stuff = panoptic(probs_of(1, 1, 0, num_classes=2), masks, is_thing=[True, False])
    assert [s.class_id for s in stuff.segments] == [1, 0]
    assert torch.equal(stuff.ids[0], torch.tensor([1] * 6 + [2] * 4, dtype=torch.int32))
    assert [s.area_px for s in stuff.segments] == [36, 24]
    things = panoptic(probs_of(0, 0, 0, num_classes=2), masks, is_thing=[True, False])
    assert len(things.segments) == 3


def test_a_query_that_wins_little_of_its_mask_is_dropped() -> None:
    masks = logits_of(left_of(8), left_of(9))
    masks[1] *= 0.5
    result = panoptic(probs_of(0, 1, num_classes=2), masks, is_thing=[True, True])
    assert [s.class_id for s in result.segments] == [0]
    everything = panoptic(
        probs_of(0, 1, num_classes=2), masks, is_thing=[True, True], overlap_threshold=0.05
    )
    assert [s.class_id for s in everything.segments] == [0, 1]


def test_background_and_doubtful_queries_make_no_segment() -> None:
    masks = logits_of(left_of(5), ~left_of(5))
    probs = torch.cat([probs_of(2, num_classes=2), probs_of(0, num_classes=2, score=0.6)])
    result = panoptic(probs, masks, is_thing=[True, True])
    assert result.segments == ()
    assert not result.ids.any()


def test_boxes_end_after_the_last_pixel_and_x_comes_first() -> None:
    mask = torch.zeros(2, 6, 10, dtype=torch.bool)
    mask[0, 1:4, 2:9] = True
    boxes = boxes_from_masks(mask)
    assert boxes.tolist() == [[2.0, 1.0, 9.0, 4.0], [0.0, 0.0, 0.0, 0.0]]


def test_faint_pixels_belong_to_the_winner_only_where_asked():
    class_probs = torch.tensor([[0.95, 0.05, 0.0]])
    # columns 0 and 1 inside the mask, column 2 outside
    mask_logits = torch.tensor([3.0, 3.0, -1.0]).expand(1, 2, 3)
    settings = {"is_thing": (True, True), "overlap_threshold": 0.5}
    plain = panoptic(class_probs, mask_logits, **settings)
    faint = panoptic(class_probs, mask_logits, keeps_faint_pixels=True, **settings)
    assert [plain.segments[0].area_px, faint.segments[0].area_px] == [4, 6]
    nowhere = panoptic(class_probs, mask_logits - 9, keeps_faint_pixels=True, **settings)
    assert nowhere.segments == ()


def test_instances_below_the_minimum_score_are_dropped():
    class_probs = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.3, 0.6]])
    mask_logits = torch.full((2, 3, 5), 4.0)
    found = instances(class_probs, mask_logits, minimum_score=0.25)
    assert len(found.scores) == len(found.boxes_xyxy_px) == 2
    assert found.class_ids.tolist() == [0, 1]
