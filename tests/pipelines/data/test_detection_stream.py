"""Boxes as a task of the stream: mixed with others, on any ranks, resumed, and trained on."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from pipelines.data.collate import build_detection_sample
from pipelines.data.config import (
    AugmentConfig,
    DataConfig,
    DetectionDataConfig,
    ImageTextDataConfig,
    SegmentationDataConfig,
)
from pipelines.data.packing import pack_coco
from pipelines.data.preparation import PrepareRequest, prepare
from pipelines.data.shards import read_index, read_manifest, read_sample
from pipelines.data.sources import Request, source_named
from pipelines.data.stream import build_stream
from pipelines.errors import DataError
from xdecoder.config import PixelDecoderConfig, TextConfig
from xdecoder.losses.draws import Draws
from xdecoder.losses.points import PointSampling
from xdecoder.losses.world import World
from xdecoder.mask_former.config import SwinConfig
from xdecoder.openseed.build import build_openseed
from xdecoder.openseed.config import (
    BoxDecoderConfig,
    BoxLossConfig,
    DenoisingConfig,
    OpenSeeDConfig,
)
from xdecoder.openseed.task import BoxedSegmentationTask, DetectionTask
from xdecoder.tasks.multi_task import MultiTask


def _data(shards: Path, num_workers: int = 0) -> DataConfig:
    folders = (str(shards),)
    augment = AugmentConfig(scale_range=(0.6, 1.5), colour_strength=0.2)
    return DataConfig(
        segmentation=SegmentationDataConfig(
            shards=folders, size_hw=(48, 72), batch_size=2, augment=augment
        ),
        detection=DetectionDataConfig(
            shards=folders, size_hw=(40, 64), batch_size=4, augment=augment
        ),
        image_text=ImageTextDataConfig(shards=folders, size_hw=(32, 44), batch_size=2),
        num_workers=num_workers,
        shuffle_window=2,
    )


def _steps(config: DataConfig, count: int, *, rank=0, world_size=1, state=None) -> list:
    stream = build_stream(config, rank=rank, world_size=world_size, seed=4, state=state)
    try:
        return list(islice(stream, count))
    finally:
        stream.close()


def _content(batches: tuple) -> list[list]:
    """Everything of the boxes of a step that training could see, and the keys of all batches."""
    boxes = batches[1]
    rows = [
        (
            key,
            image.numpy().tobytes(),
            targets.boxes_xyxy_px.numpy().tobytes(),
            targets.class_ids.tolist(),
        )
        for key, image, targets in zip(boxes.keys, boxes.images, boxes.boxes, strict=True)
    ]
    return [list(batches[0].keys), rows, list(batches[2].keys)]


def test_a_step_has_its_boxes_between_masks_and_captions(shards: Path, scenes_root: Path) -> None:
    (((masks, boxes, texts), state),) = _steps(_data(shards), 1)
    assert [batch.task for batch in (masks, boxes, texts)] == [
        "segmentation",
        "detection",
        "image_text",
    ]
    manifest = read_manifest(shards)
    things = [n for n, is_thing in zip(manifest.names, manifest.is_thing, strict=True) if is_thing]
    assert list(boxes.vocabulary.names) == things != list(manifest.names)
    assert all(boxes.vocabulary.is_thing)
    assert boxes.images.shape == (4, 3, 40, 64)
    assert state["drawn"] == {"segmentation": [2], "detection": [4], "image_text": [2]}


def test_boxes_are_those_of_the_annotation_file(shards: Path, scenes_root: Path) -> None:
    document = json.loads((scenes_root / "annotations/instances_train.json").read_text())
    names = {category["id"]: category["name"] for category in document["categories"]}
    expected: dict[int, list] = {}
    for entry in document["annotations"]:
        x, y, width, height = entry["bbox"]
        box = (names[entry["category_id"]], x, y, x + width, y + height)
        expected.setdefault(entry["image_id"], []).append(box)
    config = _data(shards)
    plain = AugmentConfig(flip_prob=0.0)
    detection = replace(config.detection, size_hw=(64, 88), augment=plain, batch_size=13)
    (((_, batch, _), _),) = _steps(replace(config, detection=detection), 1)
    assert len(set(batch.keys)) == 13
    for key, targets in zip(batch.keys, batch.boxes, strict=True):
        labels = [batch.vocabulary.names[class_id] for class_id in targets.class_ids]
        found = zip(labels, *targets.boxes_xyxy_px.T.tolist(), strict=True)
        assert sorted(found) == sorted(expected[int(key)])


def test_boxes_are_all_that_is_read_of_masks(
    shards: Path, repack: Callable, tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    index = read_index(folder, read_manifest(folder).splits["train"])
    for key in index["key"]:
        repack(
            folder,
            key.decode(),
            lambda members: {n: c[:9] if n.endswith("png") else c for n, c in members.items()},
        )
    config = _data(folder)
    none = SegmentationDataConfig(batch_size=0)
    for (boxes, _), _ in _steps(replace(config, segmentation=none), 4):
        assert len(boxes.keys) == 4


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (2, 1)])
def test_the_global_order_of_boxes_is_the_same_for_all_ranks_and_workers(
    shards: Path, world_size: int, num_workers: int
) -> None:
    expected = _steps(_data(shards), 5)
    ranks = [
        _steps(_data(shards, num_workers), 5, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step, (batches, state) in enumerate(expected):
        parts = [_content(steps[step][0]) for steps in ranks]
        joined = [[row for part in parts for row in part[task]] for task in range(3)]
        assert joined == _content(batches)
        assert all(steps[step][1] == state for steps in ranks)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_mixture_goes_on_exactly(shards: Path, num_workers: int) -> None:
    expected = _steps(_data(shards), 7)
    state = json.loads(json.dumps(_steps(_data(shards, num_workers), 4)[-1][1]))
    resumed = _steps(_data(shards, num_workers), 3, state=state)
    contents = [[_content(batches) for batches, _ in steps] for steps in (resumed, expected[4:])]
    assert contents[0] == contents[1]
    assert resumed[-1][1] == expected[-1][1]


# of a run before boxes were a task, whose order must stay as it was
OLD_STATE = {
    "version": 1,
    "seed": 4,
    "step": 2,
    "drawn": {"segmentation": [4], "image_text": [4]},
    "num_samples": {"segmentation": [13], "image_text": [13]},
}


def test_a_state_from_before_boxes_goes_on_without_them_and_refuses_them(shards: Path) -> None:
    config = replace(_data(shards), detection=DetectionDataConfig())
    whole = _steps(config, 4)
    assert whole[1][1] == OLD_STATE
    resumed = _steps(config, 2, state=OLD_STATE)
    assert [b.keys for batches, _ in resumed for b in batches] == [
        b.keys for batches, _ in whole[2:] for b in batches
    ]
    with pytest.raises(DataError, match=r"data state: num_samples must be .*'detection': \[13\]"):
        _steps(_data(shards), 1, state=OLD_STATE)


def test_boxes_that_are_damaged_are_told_and_replaced(
    shards: Path, own_shards: Path, repack: Callable
) -> None:
    key = read_index(own_shards, read_manifest(own_shards).splits["train"])["key"][3].decode()

    def damage(members: dict[str, bytes]) -> dict[str, bytes]:
        document = json.loads(members[f"{key}.json"])
        document["instances"][0]["bbox"][2] = -3
        return {**members, f"{key}.json": json.dumps(document).encode()}

    repack(own_shards, key, damage)
    told = []
    stream = build_stream(_data(own_shards), rank=0, world_size=1, seed=4)
    stream.on_damage = told.append
    whole = _steps(_data(shards), 5)
    for (found, state), (batches, expected_state) in zip(stream, whole, strict=False):
        assert state == expected_state
        # other tasks do not read boxes
        assert (found[0].keys, found[2].keys) == (batches[0].keys, batches[2].keys)
        for one, other in zip(found[1].keys, batches[1].keys, strict=True):
            assert (one != other) == (other == key)
    assert {(damage.task, damage.key) for damage in told} == {("detection", key)}
    assert "no size below 0" in told[0].reason


def test_shards_without_boxes_are_refused_by_name(own_root: Path, tmp_path: Path) -> None:
    (own_root / "annotations/instances_train.json").unlink()
    pack_coco(own_root, tmp_path / "out", ["train"])
    message = (
        r"out: the detection task needs samples with num_instances > 0 in split 'train'; none of "
        r"13 has\. Set data\.detection\.batch_size=0, or name other shards: .*instances_\*\.json"
    )
    with pytest.raises(DataError, match=message):
        _steps(_data(tmp_path / "out"), 1)


def test_a_sample_of_boxes_alone_is_that_of_the_stream_bit_for_bit(shards: Path) -> None:
    split = read_manifest(shards).splits["train"]
    rows = {row["key"].decode(): row for row in read_index(shards, split)}
    is_thing = read_manifest(shards).is_thing
    config = _data(shards, 1)
    for (_, batch, _), _ in _steps(config, 3):
        for place, key in enumerate(batch.keys):
            raw = read_sample(shards, split.shards[rows[key]["shard"]], rows[key])
            one = build_detection_sample(raw, config.detection, seed=4, epoch=0, is_thing=is_thing)
            assert torch.equal(one.image, batch.images[place])
            assert one.valid_hw == batch.valid_sizes_hw[place]
            assert torch.equal(one.boxes.boxes_xyxy_px, batch.boxes[place].boxes_xyxy_px)
            assert torch.equal(one.boxes.class_ids, batch.boxes[place].class_ids)


def _tiny_openseed() -> MultiTask:
    torch.manual_seed(3)
    model = build_openseed(
        OpenSeeDConfig(
            dim=64,
            mask_dim=32,
            text_dim=48,
            shared_dim=40,
            backbone=SwinConfig(
                dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window=4, drop_path=0.0
            ),
            pixel_decoder=PixelDecoderConfig(
                num_layers=1, num_heads=4, ffn_dim=56, is_finest_first=True
            ),
            decoder=BoxDecoderConfig(
                num_layers=2, num_heads=4, ffn_dim=72, num_queries=12, num_background=5
            ),
            text=TextConfig(num_layers=1, num_heads=4, context_length=16, num_merges=300),
        )
    )
    config = BoxLossConfig(
        points=PointSampling(num_points=50), denoising=DenoisingConfig(num_queries=10)
    )
    kinds = (BoxedSegmentationTask, DetectionTask)
    return MultiTask(
        model, [kind(config=config, templates=("{}.",), world=World()) for kind in kinds]
    )


def test_masks_and_boxes_of_one_step_train_an_openseed(
    shards: Path, scenes_root: Path, tmp_path: Path
) -> None:
    boxes_only = tmp_path / "boxes"
    request = Request(root=scenes_root, split="")
    prepare(
        PrepareRequest(source=source_named("coco-boxes"), request=request, splits=["train"]),
        boxes_only,
    )
    data = replace(_data(shards), image_text=ImageTextDataConfig(batch_size=0))
    data = replace(data, detection=replace(data.detection, shards=(str(boxes_only),), batch_size=2))
    losses = _tiny_openseed()
    optimizer = torch.optim.SGD(losses.parameters(), lr=1e-3)
    before = {name: value.clone() for name, value in losses.named_parameters()}
    for step, (batches, _) in enumerate(_steps(data, 2)):
        terms = losses(batches, Draws(step))
        assert {key.split("/")[0] for key in terms} == {"segmentation", "detection"}
        assert all(terms[f"{task}/box_l1/2"] > 0 for task in ("segmentation", "detection"))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    values = dict(losses.named_parameters())
    assert all(torch.isfinite(value).all() for value in values.values())
    assert sum(not torch.equal(values[name], old) for name, old in before.items()) > 100
