"""Masks at the size of an image, made in parts."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from xdecoder import full_size, postprocess
from xdecoder.full_size import FullSizeMasks, semantic_ids

SIZES = {"canvas_hw": (64, 96), "valid_hw": (50, 90), "out_hw": (73, 41)}


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest storage that any operation made."""

    num_bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        parts = result if isinstance(result, tuple | list) else [result]
        sizes = [part.untyped_storage().nbytes() for part in parts if torch.is_tensor(part)]
        self.num_bytes = max([self.num_bytes, *sizes])
        return result


def masks_and_whole(num_queries=5, **sizes):
    logits = torch.randn(num_queries, 16, 24)
    sizes = SIZES | sizes
    return FullSizeMasks(logits, **sizes), postprocess.resize_masks(logits, **sizes)


def test_each_mask_is_that_of_resizing_all():
    masks, whole = masks_and_whole()
    assert masks.shape == tuple(whole.shape)
    for query in range(len(masks)):
        assert torch.equal(masks[query], whole[query])
    assert torch.equal(masks.whole(), whole)


@pytest.mark.parametrize("out_hw", [(73, 41), (200, 333), (64, 96), (9, 7)])
def test_rows_of_all_masks_are_those_of_resizing_all(monkeypatch, out_hw):
    monkeypatch.setattr(full_size, "CHUNK_ELEMENTS", 3000)
    masks, whole = masks_and_whole(out_hw=out_hw)
    blocks = list(masks.row_blocks(1))
    assert len(blocks) > 1
    assert [rows.start for rows, _ in blocks][1:] == [rows.stop for rows, _ in blocks][:-1]
    torch.testing.assert_close(torch.cat([block for _, block in blocks], 1), whole)


def test_semantic_classes_are_those_of_the_whole_scores(monkeypatch):
    monkeypatch.setattr(full_size, "CHUNK_ELEMENTS", 3000)
    masks, whole = masks_and_whole()
    probs = torch.randn(5, 8).softmax(-1)
    expected = postprocess.semantic(probs, whole)
    best = expected.max(0).values
    found = expected.gather(0, semantic_ids(probs, masks)[None])[0]
    # where two classes are equal up to rounding, either will do
    torch.testing.assert_close(found, best, atol=1e-6, rtol=0)


def test_panoptic_and_instances_are_those_of_whole_masks():
    masks, whole = masks_and_whole(num_queries=9)
    probs = (3 * torch.randn(9, 4)).softmax(-1)
    settings = {"is_thing": (True, False, True), "object_threshold": 0.2, "overlap_threshold": 0.1}
    first, second = (postprocess.panoptic(probs, each, **settings) for each in (masks, whole))
    assert torch.equal(first.ids, second.ids)
    assert first.segments == second.segments
    assert first.segments
    for one, other in zip(
        postprocess.instances(probs, masks, top_k=7),
        postprocess.instances(probs, whole, top_k=7),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_memory_does_not_grow_with_the_number_of_queries(monkeypatch):
    monkeypatch.setattr(full_size, "CHUNK_ELEMENTS", 1 << 16)
    monkeypatch.setattr(postprocess, "CHUNK_ELEMENTS", 1 << 16)
    peaks = []
    for num_queries in (8, 64):
        masks, _ = masks_and_whole(num_queries=1)
        masks = FullSizeMasks(torch.randn(num_queries, 16, 24), **SIZES | {"out_hw": (240, 400)})
        probs = (2 * torch.randn(num_queries, 7)).softmax(-1)
        with LargestTensor() as largest:
            semantic_ids(probs, masks)
            postprocess.panoptic(probs, masks, is_thing=(True,) * 6, object_threshold=0.1)
        peaks.append(largest.num_bytes)
    # the largest tensor is the map of ids, eight bytes a pixel
    assert peaks[0] == peaks[1] == 240 * 400 * 8


def test_no_queries_are_no_masks():
    masks, _ = masks_and_whole(num_queries=1)
    masks = FullSizeMasks(torch.zeros(0, 16, 24), **SIZES)
    found = postprocess.instances(torch.zeros(0, 4), masks)
    assert found.masks.shape == (0, 73, 41)
    assert not postprocess.panoptic(torch.zeros(0, 4), masks, is_thing=(True,) * 3).ids.any()
