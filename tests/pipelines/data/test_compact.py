import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.data.collate import build_image_text_sample, build_segmentation_sample
from pipelines.data.compact import compact_segmentation, step_bytes
from pipelines.data.config import (
    AugmentConfig,
    DataConfig,
    ImageTextDataConfig,
    SegmentationDataConfig,
)
from pipelines.data.decode import decode_annotations, decode_image, decode_segment_ids
from pipelines.data.shards import RawSample, read_index, read_manifest, read_sample
from pipelines.data.step_memory import StepMemory
from pipelines.data.stream import build_stream

AUGMENT = AugmentConfig(scale_range=(0.1, 2.0), colour_strength=0.3, hue_degrees=20.0)
SEGMENTATION = SegmentationDataConfig(size_hw=(104, 136), batch_size=4, augment=AUGMENT)
IMAGE_TEXT = ImageTextDataConfig(
    size_hw=(24, 44), batch_size=4, augment=replace(AUGMENT, scale_range=(0.3, 1.0))
)


@pytest.fixture(scope="module")
def samples(shards: Path) -> dict[str, RawSample]:
    split = read_manifest(shards).splits["train"]
    rows = read_index(shards, split)
    found = [read_sample(shards, split.shards[row["shard"]], row) for row in rows]
    return {sample.key: sample for sample in found}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sample_alone_is_that_of_the_stream_bit_for_bit(
    shards: Path, samples: dict[str, RawSample], num_workers: int
) -> None:
    config = DataConfig(
        segmentation=replace(SEGMENTATION, shards=(str(shards),)),
        image_text=replace(IMAGE_TEXT, shards=(str(shards),)),
        num_workers=num_workers,
    )
    stream = build_stream(config, rank=0, world_size=1, seed=3)
    seen: dict[tuple[str, str], int] = {}
    sizes = set()
    for (segmentation, image_text), _ in islice(stream, 8):
        for place, key in enumerate(segmentation.keys):
            epoch = seen["segmentation", key] = seen.get(("segmentation", key), -1) + 1
            one = build_segmentation_sample(samples[key], SEGMENTATION, seed=3, epoch=epoch)
            assert torch.equal(one.image, segmentation.images[place])
            assert one.valid_hw == segmentation.valid_sizes_hw[place]
            assert torch.equal(one.segments.masks, segmentation.segments[place].masks)
            assert torch.equal(one.segments.class_ids, segmentation.segments[place].class_ids)
            assert one.phrases.phrases == segmentation.phrases[place].phrases
            assert torch.equal(one.phrases.masks, segmentation.phrases[place].masks)
            sizes.add(one.valid_hw)
        for place, key in enumerate(image_text.keys):
            epoch = seen["image_text", key] = seen.get(("image_text", key), -1) + 1
            other = build_image_text_sample(samples[key], IMAGE_TEXT, seed=3, epoch=epoch)
            assert torch.equal(other.image, image_text.images[place])
            assert other.caption == image_text.captions[place]
    stream.close()
    assert max(seen.values()) >= 2
    assert len(sizes) > 10


def test_captions_of_a_segmented_image_come_along(samples: dict[str, RawSample]) -> None:
    raw = next(iter(samples.values()))
    document = json.loads(raw.member("json"))
    document["captions"] = ["A dog on the left.", "Two dogs."]
    raw = replace(raw, members={**raw.members, "json": json.dumps(document).encode()})
    for flip, captions in (
        (0.0, ("A dog on the left.", "Two dogs.")),
        (1.0, ("A dog on the right.", "Two dogs.")),
    ):
        memory = StepMemory(torch.empty(1 << 20, dtype=torch.uint8))
        config = replace(SEGMENTATION, augment=AugmentConfig(flip_prob=flip))
        built = compact_segmentation(raw, config, memory, seed=0, epoch=0, num_classes=99)
        assert built.captions == captions


def _image_of_many_segments(count: int, side: int) -> tuple[np.ndarray, list[list[int]]]:
    """A label picture of `count` blocks with ids all over three bytes, and its segments."""
    rng = np.random.default_rng(count)
    ids = rng.choice(np.arange(1, 1 << 24), count, replace=False)
    columns = min(24, count)
    rows = -(-count // columns)
    blocks = np.zeros(rows * columns, np.int64)
    blocks[:count] = ids
    picture = np.kron(blocks.reshape(rows, columns), np.ones((side, side), np.int64))
    return picture, [[int(number), place % 7, 0] for place, number in enumerate(ids)]


@pytest.mark.parametrize("count", [3, 255, 256, 700])
def test_any_number_of_segments_keeps_its_masks_and_classes(count: int) -> None:
    ids, segments = _image_of_many_segments(count, side=3)
    picture = np.stack([(ids >> shift) & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    files = {"png": io.BytesIO(), "jpg": io.BytesIO()}
    Image.fromarray(picture).save(files["png"], "PNG")
    Image.fromarray(picture).save(files["jpg"], "JPEG")
    document = {"size_hw": ids.shape, "segments": segments, "captions": [], "regions": []}
    members = {
        "jpg": files["jpg"].getvalue(),
        "panoptic.png": files["png"].getvalue(),
        "json": json.dumps(document).encode(),
    }
    raw = RawSample(shard="a.tar", key="k", members=members)
    assert np.array_equal(decode_segment_ids(raw, decode_annotations(raw)), ids)
    config = SegmentationDataConfig(size_hw=ids.shape, augment=AugmentConfig(flip_prob=0.0))
    built = build_segmentation_sample(raw, config, seed=0, epoch=0)
    assert len(built.segments.masks) == count
    for mask, class_id, segment in zip(
        built.segments.masks, built.segments.class_ids, segments, strict=True
    ):
        assert np.array_equal(mask.numpy(), ids == segment[0])
        assert class_id == segment[1]
    # half of them are cut away: the others keep their classes
    config = replace(config, augment=AugmentConfig(flip_prob=0.0, scale_range=(1.5, 1.5)))
    cropped = build_segmentation_sample(raw, config, seed=0, epoch=0).segments
    assert len(cropped.masks) < count or count == 3
    assert cropped.masks.any(dim=(1, 2)).all()
    assert int(cropped.masks.sum(0).max()) == 1


def test_ids_that_a_sample_does_not_list_are_unlabelled(samples: dict[str, RawSample]) -> None:
    raw = next(iter(samples.values()))
    config = SegmentationDataConfig(size_hw=(64, 88), augment=AugmentConfig(flip_prob=0.0))
    whole = build_segmentation_sample(raw, config, seed=0, epoch=0).segments
    document = json.loads(raw.member("json"))
    # the same picture, after a sample that listed all of its ids
    document["segments"] = document["segments"][1:]
    raw = replace(raw, members={**raw.members, "json": json.dumps(document).encode()})
    fewer = build_segmentation_sample(raw, config, seed=0, epoch=0).segments
    assert torch.equal(fewer.masks, whole.masks[1:])
    assert torch.equal(fewer.class_ids, whole.class_ids[1:])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("denominator", [1, 2, 4, 8])
def test_every_kind_of_jpeg_is_decoded_at_every_scale(mode: str, denominator: int) -> None:
    rows, columns = np.mgrid[:61, :90]
    gray = Image.fromarray((2 * rows + columns).astype(np.uint8))
    file = io.BytesIO()
    gray.convert(mode).save(file, "JPEG", quality=98)
    document = {"size_hw": [61, 90], "segments": None, "captions": [], "regions": []}
    members = {"jpg": file.getvalue(), "json": json.dumps(document).encode()}
    raw = RawSample(shard="a.tar", key="k", members=members)
    image = decode_image(raw, decode_annotations(raw), denominator)
    assert image.shape == (-(-61 // denominator), -(-90 // denominator), 3)
    center = (np.arange(image.shape[0])[:, None, None] + 0.5) * denominator - 0.5
    across = (np.arange(image.shape[1])[None, :, None] + 0.5) * denominator - 0.5
    inner = np.s_[: 61 // denominator, : 90 // denominator]
    assert np.abs(image.astype(float) - (2 * center + across))[inner].max() < 8


def test_a_step_never_needs_more_than_its_memory(
    samples: dict[str, RawSample], repack: Callable
) -> None:
    config = replace(
        SEGMENTATION, max_phrases=6, augment=AugmentConfig(scale_range=(0.9, 1.1)), size_hw=(64, 88)
    )
    one = step_bytes((replace(config, batch_size=2),), world_size=2)
    assert one == step_bytes((replace(config, batch_size=1),), world_size=1)
    most = 0
    for raw in samples.values():
        for epoch in range(6):
            memory = StepMemory(torch.empty(one, dtype=torch.uint8))
            compact_segmentation(raw, config, memory, seed=0, epoch=epoch, num_classes=99)
            most = max(most, memory.used)
    assert one / 3 < most <= one
