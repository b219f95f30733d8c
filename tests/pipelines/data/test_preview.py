import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.config import AugmentConfig
from pipelines.data.packing import pack_coco
from pipelines.data.preview import draw_preview, draw_sample, sample_keys
from pipelines.data.shards import read_index, read_manifest, read_sample
from pipelines.errors import DataError


def test_a_preview_is_the_same_picture_every_time(shards: Path) -> None:
    key = sample_keys(shards, "train")[3]
    augment = AugmentConfig(scale_range=(0.5, 2.0))
    pictures = [
        draw_preview(shards, "train", key, size_hw=(48, 72), augment=augment, epoch=epoch)
        for epoch in (2, 2, 3)
    ]
    assert np.array_equal(pictures[0], pictures[1])
    assert pictures[0].size != pictures[2].size or not np.array_equal(pictures[0], pictures[2])


def test_every_sample_with_something_to_draw_is_listed(shards: Path) -> None:
    assert len(sample_keys(shards, "train")) == 13


def test_samples_with_captions_only_are_drawn(own_root: Path, tmp_path: Path) -> None:
    (own_root / "annotations/panoptic_val.json").unlink()
    pack_coco(own_root, tmp_path / "out", ["val"])
    picture = draw_preview(tmp_path / "out", "val", sample_keys(tmp_path / "out", "val")[0])
    assert picture.width > picture.height


def test_samples_with_nothing_to_draw_are_refused(own_root: Path, tmp_path: Path) -> None:
    for kind in ("panoptic", "captions"):
        (own_root / f"annotations/{kind}_val.json").unlink()
    path = own_root / "annotations/instances_val.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    pack_coco(own_root, tmp_path / "out", ["val"])
    assert sample_keys(tmp_path / "out", "val") == ()
    key = next((own_root / "images/val").iterdir()).stem
    with pytest.raises(DataError, match=f"sample {key} has neither captions nor regions"):
        draw_preview(tmp_path / "out", "val", key)


def test_boxes_without_segments_are_drawn_where_they_are(own_root: Path, tmp_path: Path) -> None:
    for kind in ("panoptic", "captions"):
        (own_root / f"annotations/{kind}_val.json").unlink()
    pack_coco(own_root, tmp_path / "out", ["val"])
    key = sample_keys(tmp_path / "out", "val")[0]
    manifest = read_manifest(tmp_path / "out")
    info = manifest.splits["val"]
    (row,) = read_index(tmp_path / "out", info)[:1]
    raw = read_sample(tmp_path / "out", info.shards[0], row)
    document = json.loads(raw.member("json"))
    box = {"id": 1, "class_id": 2, "is_crowd": 0, "rle": None, "bbox": [60, 10, 20, 30]}
    with_box = {**document, "segments": None, "instances": [box], "annotation": "boxes"}
    member = json.dumps(with_box).encode()
    pictures = [
        draw_sample(replace(raw, members={**raw.members, "json": text}), manifest)
        for text in (member, member.replace(b"[60, 10, 20, 30]", b"[4, 10, 20, 30]"))
    ]
    first, second = (np.asarray(picture).astype(int) for picture in pictures)
    changed = np.abs(first - second).max(axis=(0, 2)) > 8
    # 88 pixels are drawn 384 / 64 times as large
    assert changed[60 * 6 : 80 * 6].mean() > 0.9
    assert changed[4 * 6 : 24 * 6].mean() > 0.9
    assert not changed[30 * 6 : 54 * 6].any()
    assert key == raw.key


def test_an_unknown_key_is_named(shards: Path) -> None:
    with pytest.raises(DataError, match="split 'train' has no sample 'nobody'"):
        draw_preview(shards, "train", "nobody")
