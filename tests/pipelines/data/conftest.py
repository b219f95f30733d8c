"""A small COCO-format root of procedural scenes, and its shards."""

import hashlib
import io
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
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


@pytest.fixture(scope="session")
def repack() -> Callable[..., None]:
    """Put other bytes in the place of a sample, with index and manifest as if made like this."""
    return _repack


def _repack(
    folder: Path, key: str, change: Callable[[dict[str, bytes]], dict[str, bytes] | bytes]
) -> None:
    """`change` gets the members of the sample by name, and returns members or a stretch of tar."""
    manifest = json.loads((folder / "manifest.json").read_text())
    split = manifest["splits"]["train"]
    index = np.load(folder / split["index"])
    (number,) = np.flatnonzero(index["key"] == key.encode())
    row = index[number]
    shard = split["shards"][row["shard"]]
    path = folder / shard["file"]
    blob = path.read_bytes()
    start, end = int(row["offset"]), int(row["offset"] + row["num_bytes"])
    with tarfile.open(fileobj=io.BytesIO(blob[start:end])) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    changed = change(members)
    new = changed if isinstance(changed, bytes) else tar_of(changed)
    blob = blob[:start] + new + blob[end:]
    path.write_bytes(blob)
    index["offset"][(index["shard"] == row["shard"]) & (index["offset"] > start)] += (
        len(new) - end + start
    )
    index["num_bytes"][number], index["crc32"][number] = len(new), zlib.crc32(new)
    np.save(folder / split["index"], index)
    shard |= {"num_bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
    contents = (folder / split["index"]).read_bytes()
    split["index_sha256"] = hashlib.sha256(contents).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def tar_of(members: dict[str, bytes]) -> bytes:
    """Members one after another, without the end of a tar."""
    blob = b""
    for name, content in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        blob += info.tobuf() + content + bytes(-len(content) % 512)
    return blob
