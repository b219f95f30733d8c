import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.config import AugmentConfig
from pipelines.data.packing import pack_coco
from pipelines.data.preview import draw_preview, sample_keys
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


def test_an_unknown_key_is_named(shards: Path) -> None:
    with pytest.raises(DataError, match="split 'train' has no sample 'nobody'"):
        draw_preview(shards, "train", "nobody")
