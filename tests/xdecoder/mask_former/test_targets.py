"""Annotated segments as targets of a fixed list of classes."""

import pytest
import torch

from xdecoder.batch import PhraseTargets, SegmentationBatch, SegmentTargets, Vocabulary
from xdecoder.mask_former.targets import closed_targets

VOCABULARY = Vocabulary(names=("sky", "dog", "cat", "road"), is_thing=(False, True, True, False))
SIZE_HW = (4, 6)


def batch_of(*class_ids):
    images = [torch.tensor(ids, dtype=torch.long) for ids in class_ids]
    segments = tuple(
        SegmentTargets(masks=torch.rand(len(ids), *SIZE_HW) > 0.5, class_ids=ids) for ids in images
    )
    return SegmentationBatch(
        keys=tuple(map(str, range(len(images)))),
        images=torch.zeros(len(images), 3, *SIZE_HW),
        valid_sizes_hw=(SIZE_HW,) * len(images),
        vocabulary=VOCABULARY,
        segments=segments,
        phrases=(PhraseTargets(phrases=(), masks=torch.zeros(0, *SIZE_HW).bool()),) * len(images),
    )


def test_class_ids_are_places_in_the_models_list():
    batch = batch_of([1, 1, 0], [3])
    found = closed_targets(batch, ("road", "sky", "cat", "dog"), "panoptic")
    assert [image.class_ids.tolist() for image in found] == [[3, 3, 1], [0]]
    assert all(
        torch.equal(ours.masks, theirs.masks)
        for ours, theirs in zip(found, batch.segments, strict=True)
    )


def test_segments_of_other_classes_are_no_targets():
    found = closed_targets(batch_of([1, 0, 2], [0]), ("cat", "dog"), "panoptic")
    assert [image.class_ids.tolist() for image in found] == [[1, 0], []]
    assert found[1].masks.shape == (0, *SIZE_HW)


def test_instances_are_things_only():
    names = VOCABULARY.names
    found = closed_targets(batch_of([1, 0, 2, 3, 1], [0, 3]), names, "instance")
    assert [image.class_ids.tolist() for image in found] == [[1, 2, 1], []]


def test_semantic_targets_join_the_segments_of_a_class():
    batch = batch_of([1, 0, 1], [])
    found = closed_targets(batch, VOCABULARY.names, "semantic")
    assert found[0].class_ids.tolist() == [0, 1]
    masks = batch.segments[0].masks
    assert torch.equal(found[0].masks, torch.stack([masks[1], masks[0] | masks[2]]))
    assert found[1].masks.shape == (0, *SIZE_HW)


def test_data_without_a_class_of_the_model_is_refused():
    with pytest.raises(ValueError, match="of 2 classes its vocabulary lacks 1: horse"):
        closed_targets(batch_of([1]), ("dog", "horse"), "panoptic")
