import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.data.augment import mirror_text
from pipelines.data.coco import CocoFolder, CocoRecord, decode_mask, read_segment_ids
from pipelines.data.collate import (
    build_image_text_sample,
    build_segmentation_sample,
    collate_image_text,
    collate_segmentation,
)
from pipelines.data.compact import compact_image_text, compact_segmentation
from pipelines.data.config import AugmentConfig, ImageTextDataConfig, SegmentationDataConfig
from pipelines.data.shards import RawSample, read_index, read_manifest, read_sample
from pipelines.data.step_memory import StepMemory
from pipelines.errors import DataError
from xdecoder.batch import Vocabulary

SIZE_HW = (64, 88)


@pytest.fixture(scope="module")
def samples(shards: Path) -> list[RawSample]:
    split = read_manifest(shards).splits["train"]
    index = read_index(shards, split)
    return [read_sample(shards, split.shards[row["shard"]], row) for row in index]


@pytest.fixture(scope="module")
def records(scenes_root: Path) -> dict[str, CocoRecord]:
    return {record.image_path.stem: record for record in CocoFolder(scenes_root).split("train")}


def _config(flip: float = 0.0, **changes) -> SegmentationDataConfig:
    return SegmentationDataConfig(
        **{"size_hw": SIZE_HW, "augment": AugmentConfig(flip_prob=flip), **changes}
    )


def _damaged(sample: RawSample, extension: str, content: bytes) -> RawSample:
    return replace(sample, members={**sample.members, extension: content})


def _changed(sample: RawSample, **fields: object) -> RawSample:
    document = {**json.loads(sample.member("json")), **fields}
    return _damaged(sample, "json", json.dumps(document).encode())


def test_segments_are_those_of_the_panoptic_picture(samples, records) -> None:
    for raw in samples:
        built = build_segmentation_sample(raw, _config(), seed=0, epoch=0)
        record = records[raw.key]
        ids = read_segment_ids(record.panoptic_path)
        assert built.segments.masks.dtype == torch.bool
        assert len(built.segments.masks) == len(record.segments)
        for mask, class_id, segment in zip(
            built.segments.masks, built.segments.class_ids, record.segments, strict=True
        ):
            assert np.array_equal(mask.numpy(), ids == segment.id)
            # the scenes number their categories from 1 in order
            assert class_id == segment.category_id - 1


def _spoken(record: CocoRecord) -> dict[str, list[np.ndarray]]:
    spoken: dict[str, list[np.ndarray]] = {}
    for region in record.refs:
        mask = decode_mask(region.instance.segmentation, SIZE_HW)
        for sentence in region.sentences:
            spoken.setdefault(sentence.text, []).append(mask)
    return spoken


def test_phrases_come_with_the_region_that_they_mean(samples, records) -> None:
    for raw in samples:
        built = build_segmentation_sample(raw, _config(max_phrases=5), seed=0, epoch=0).phrases
        spoken = _spoken(records[raw.key])
        assert len(built.phrases) == len(built.masks) == min(5, len(spoken))
        assert len(set(built.phrases)) == len(built.phrases)
        for text, mask in zip(built.phrases, built.masks, strict=True):
            assert any(np.array_equal(mask.numpy(), region) for region in spoken[text])


def test_a_flip_mirrors_masks_and_swaps_left_and_right_in_words(samples, records) -> None:
    swapped = 0
    for raw in samples:
        built = build_segmentation_sample(raw, _config(1.0, max_phrases=40), seed=0, epoch=0)
        plain = build_segmentation_sample(raw, _config(0.0, max_phrases=40), seed=0, epoch=0)
        assert torch.equal(built.image, plain.image.flip(-1))
        assert torch.equal(built.segments.masks, plain.segments.masks.flip(-1))
        spoken = _spoken(records[raw.key])
        for text, mask in zip(built.phrases.phrases, built.phrases.masks, strict=True):
            original = mirror_text(text, True)
            swapped += original != text
            assert any(np.array_equal(mask.numpy(), r[:, ::-1]) for r in spoken[original])
    assert swapped > 5


def test_phrases_and_captions_change_from_epoch_to_epoch(samples) -> None:
    config = ImageTextDataConfig(size_hw=(32, 44))
    texts = {
        build_image_text_sample(samples[0], config, seed=0, epoch=e).caption for e in range(30)
    }
    assert len(texts) >= 5
    phrases = {
        build_segmentation_sample(
            samples[0], _config(max_phrases=1), seed=0, epoch=e
        ).phrases.phrases
        for e in range(30)
    }
    assert len(phrases) >= 4


def test_a_sample_can_be_built_again_alone(samples) -> None:
    config = _config(0.5, augment=AugmentConfig(scale_range=(0.3, 2.0), colour_strength=0.3))
    for epoch in range(3):
        one = build_segmentation_sample(samples[2], config, seed=5, epoch=epoch)
        two = build_segmentation_sample(samples[2], config, seed=5, epoch=epoch)
        assert torch.equal(one.image, two.image)
        assert torch.equal(one.segments.masks, two.segments.masks)
        assert one.phrases.phrases == two.phrases.phrases


def test_what_the_crop_cuts_away_is_no_target(samples) -> None:
    config = _config(max_phrases=40, augment=AugmentConfig(scale_range=(3.0, 3.0)))
    fewer = 0
    for raw in samples:
        built = build_segmentation_sample(raw, config, seed=0, epoch=0)
        whole = build_segmentation_sample(raw, _config(max_phrases=40), seed=0, epoch=0)
        assert built.segments.masks.any(dim=(1, 2)).all()
        assert built.phrases.masks.any(dim=2).any(dim=1).all()
        fewer += len(built.phrases.phrases) < len(whole.phrases.phrases)
    assert fewer > len(samples) // 2


def test_crowds_are_no_targets(samples) -> None:
    segments = json.loads(samples[0].member("json"))["segments"]
    crowd = [[*segments[0][:2], 1], *segments[1:]]
    built = build_segmentation_sample(
        _changed(samples[0], segments=crowd), _config(), seed=0, epoch=0
    )
    assert len(built.segments.masks) == len(segments) - 1


def test_images_without_phrases_have_empty_ones(samples) -> None:
    built = build_segmentation_sample(_changed(samples[0], regions=[]), _config(), seed=0, epoch=0)
    assert built.phrases.phrases == ()
    assert built.phrases.masks.shape == (0, *SIZE_HW)
    assert built.phrases.masks.dtype == torch.bool


def test_batches_keep_the_order_of_their_samples(samples) -> None:
    vocabulary = Vocabulary(names=("a",), is_thing=(True,))
    config = _config(size_hw=(80, 96))
    memory = StepMemory(torch.empty(1 << 20, dtype=torch.uint8))
    built = [
        compact_segmentation(raw, config, memory, seed=0, epoch=0, num_classes=99)
        for raw in samples[:3]
    ]
    batch = collate_segmentation(built, vocabulary, memory.memory)
    assert batch.keys == tuple(raw.key for raw in samples[:3])
    assert batch.images.shape == (3, 3, 80, 96)
    assert batch.images.dtype == torch.float32
    assert batch.valid_sizes_hw == ((70, 96),) * 3
    assert not batch.images[:, :, 70:].any()
    assert all(s.masks.shape[1:] == (80, 96) for s in (*batch.segments, *batch.phrases))
    text_config = ImageTextDataConfig(size_hw=(32, 50))
    texts = [compact_image_text(raw, text_config, memory, seed=0, epoch=0) for raw in samples[:3]]
    text_batch = collate_image_text(texts, memory.memory)
    assert text_batch.images.shape == (3, 3, 32, 50)
    assert text_batch.valid_sizes_hw == ((32, 44),) * 3
    assert len(text_batch.captions) == 3


@pytest.mark.parametrize(
    ("extension", "content", "message"),
    [
        ("jpg", b"no picture", "jpg cannot be decoded"),
        ("panoptic.png", b"no picture", "panoptic.png cannot be decoded"),
        ("json", b'{"image_id": ', "json cannot be decoded"),
        ("json", b'{"size_hw": [64, 88]}', "json cannot be decoded .*segments"),
    ],
)
def test_a_member_that_cannot_be_decoded_is_named(samples, extension, content, message) -> None:
    raw = _damaged(samples[1], extension, content)
    with pytest.raises(DataError, match=rf"\.tar: sample {raw.key}: {message}"):
        build_segmentation_sample(raw, _config(), seed=0, epoch=0)


def test_a_picture_of_another_size_is_named(samples) -> None:
    raw = _changed(samples[1], size_hw=[64, 90])
    with pytest.raises(
        DataError, match=r"jpg must have height and width \(64, 90\).*got \(64, 88\)"
    ):
        build_segmentation_sample(raw, _config(), seed=0, epoch=0)


def test_a_region_that_does_not_decode_is_named(samples) -> None:
    regions = json.loads(samples[1].member("json"))["regions"]
    regions = [{**region, "rle": "\u20ac"} for region in regions]
    with pytest.raises(DataError, match="json cannot be decoded"):
        build_segmentation_sample(_changed(samples[1], regions=regions), _config(), seed=0, epoch=0)
