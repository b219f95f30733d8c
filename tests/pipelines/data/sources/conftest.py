"""Data sets in their owners' layouts, a few small pictures each, and what is packed from them."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipelines.data.preparation import PrepareRequest, prepare
from pipelines.data.shards import Manifest, read_manifest
from pipelines.data.sources import Request, source_named

SIZE_HW = (24, 37)


class Layout:
    """Writes the files of a data set below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._rng = np.random.default_rng(7)

    def path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def picture(self, name: str, size_hw: tuple[int, int] = SIZE_HW) -> Path:
        path = self.path(name)
        noise = self._rng.integers(0, 255, (size_hw[0] // 4, size_hw[1] // 4, 3), np.uint8)
        Image.fromarray(noise).resize(size_hw[::-1]).save(path)
        return path

    def labels(self, name: str, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(self.path(name))

    def palette_labels(self, name: str, pixels: np.ndarray) -> None:
        picture = Image.fromarray(pixels.astype(np.uint8), mode="P")
        picture.putpalette([value for number in range(256) for value in (number, 0, 0)])
        picture.save(self.path(name))

    def json(self, name: str, document: Any) -> None:
        self.path(name).write_text(json.dumps(document), encoding="utf-8")

    def text(self, name: str, *lines: str) -> None:
        self.path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class PackedSample:
    """A sample read back: its JSON, its segment ids, its picture."""

    document: dict[str, Any]
    ids: np.ndarray | None
    jpeg: bytes

    def region(self, class_id: int) -> np.ndarray:
        """Pixels of all segments of a class."""
        assert self.ids is not None
        wanted = [s[0] for s in self.document["segments"] if s[1] == class_id]
        return np.isin(self.ids, wanted)


@dataclass(frozen=True)
class Packed:
    """A finished folder, read by webdataset alone."""

    manifest: Manifest
    samples: dict[str, PackedSample]


Pack = Callable[..., Packed]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "root")


@pytest.fixture
def pack(tmp_path: Path, layout: Layout) -> Pack:
    """Packs a source of `layout.root` and reads it again."""

    def packed(name: str, split: str = "train", **options: Any) -> Packed:
        source = source_named(name)
        request = Request(root=layout.root, split="", **options)
        out = tmp_path / f"out-{name}-{split}"
        manifest = prepare(PrepareRequest(source=source, request=request, splits=[split]), out)
        assert manifest == read_manifest(out)
        files = [str(out / s.file) for info in manifest.splits.values() for s in info.shards]
        samples = {
            sample["__key__"]: PackedSample(
                json.loads(sample["json"]), _ids(sample.get("panoptic.png")), sample["jpg"]
            )
            for sample in webdataset.WebDataset(files, shardshuffle=False)
        }
        return Packed(manifest, samples)

    return packed


def _ids(png: bytes | None) -> np.ndarray | None:
    if png is None:
        return None
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture).astype(np.int64) @ np.array([1, 256, 65536])
