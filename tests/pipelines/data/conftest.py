"""A small COCO-format root of procedural scenes, and its shards."""

import shutil
from pathlib import Path

import pytest

from pipelines.data.packing import pack_coco
from pipelines.scenes.dataset import ScenesRequest, write_scenes


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen training, four validation and five zeroshot scenes of 64 x 88 pixels."""
    root = tmp_path_factory.mktemp("coco") / "root"
    request = ScenesRequest(num_train=13, num_val=4, num_zeroshot=5, size_hw=(64, 88), seed=1)
    write_scenes(request, root)
    return root


@pytest.fixture(scope="session")
def shards(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of two splits, the training split in several tars."""
    out = tmp_path_factory.mktemp("shards") / "out"
    pack_coco(scenes_root, out, ["train", "val"], shard_bytes=15_000)
    return out


@pytest.fixture
def own_root(scenes_root: Path, tmp_path: Path) -> Path:
    """A copy of the root that a test may damage."""
    return Path(shutil.copytree(scenes_root, tmp_path / "root"))


@pytest.fixture
def own_shards(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards that a test may damage."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))
