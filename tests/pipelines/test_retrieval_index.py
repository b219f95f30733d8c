import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import retrieval_index
from pipelines.errors import DataError
from pipelines.image_files import Broken
from pipelines.retrieval_index import index_images
from xdecoder.images import ImageFit
from xdecoder.model import XDecoder
from xdecoder.tasks.retrieval import Embedding

FIT = ImageFit(size_hw=(32, 48))
Index = Callable[..., tuple[list[Path], torch.Tensor]]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "photos" / f"{name}.png" for name in "abc"]
    paths[0].parent.mkdir()
    for seed, path in enumerate(paths):
        draw(path, seed)
    return paths


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures whose vectors were made, in order."""
    names: list[str] = []
    entry = retrieval_index._entry

    def spy(model: XDecoder, embedding: Embedding, image: Path) -> Any:
        names.append(image.name)
        return entry(model, embedding, image)

    monkeypatch.setattr(retrieval_index, "_entry", spy)
    return names


@pytest.fixture
def index(tmp_path: Path, tiny_model: XDecoder) -> Index:
    def build(images: list[Path], **changes: Any) -> tuple[list[Path], torch.Tensor]:
        settings: dict[str, Any] = {"fit": FIT, "broken": Broken()} | changes
        return index_images(tmp_path / "index.safetensors", images, tiny_model, **settings)

    return build


def test_vectors_are_those_of_the_model(
    index: Index, images: list[Path], tiny_model: XDecoder
) -> None:
    paths, vectors = index(images)
    assert paths == images
    for path, vector in zip(paths, vectors, strict=True):
        with Image.open(path) as picture:
            torch.testing.assert_close(vector, tiny_model.predict(picture, Embedding(fit=FIT)))


def test_what_is_there_is_not_made_again(index: Index, images: list[Path], made: list[str]) -> None:
    _, first = index(images)
    paths, again = index(images[::-1])
    assert made == ["a.png", "b.png", "c.png"]
    assert paths == images[::-1]
    assert torch.equal(again, first.flip(0))


def test_only_new_and_changed_pictures_are_looked_at(
    index: Index, images: list[Path], made: list[str], tmp_path: Path
) -> None:
    _, before = index(images)
    made.clear()
    draw(images[1], 9)
    os.utime(images[1], ns=(1, 1))
    images[2].unlink()
    new = tmp_path / "photos" / "d.png"
    draw(new, 10)
    paths, after = index([images[0], images[1], new])
    assert made == ["b.png", "d.png"]
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1])
    assert len(paths) == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("weights", "it was made with other weights"),
        ("fit", "it was made at other image sizes"),
        ("damage", "the file is damaged"),
        ("none", "there is none yet"),
    ],
)
def test_a_stale_index_is_made_anew_and_says_why(
    index: Index,
    images: list[Path],
    made: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: str,
    reason: str,
) -> None:
    caplog.set_level("INFO")
    index(images)
    file = tmp_path / "index.safetensors"
    made.clear()
    caplog.clear()
    settings: dict[str, Any] = {}
    if change == "weights":
        monkeypatch.setattr(retrieval_index, "weights_hash", lambda model: "0123456789abcdef")
    elif change == "fit":
        settings["fit"] = ImageFit(size_hw=(48, 64))
    elif change == "damage":
        file.write_bytes(file.read_bytes()[:-40])
    else:
        file.unlink()
    index(images, **settings)
    assert made == ["a.png", "b.png", "c.png"]
    assert f"all of it is made anew: {reason}" in caplog.text


def test_a_broken_picture_is_reported_and_the_others_are_indexed(
    index: Index, images: list[Path]
) -> None:
    images[1].write_bytes(b"nothing")
    broken = Broken()
    paths, vectors = index([*images, images[0].with_name("gone.png")], broken=broken)
    assert [path.name for path in paths] == ["a.png", "c.png"]
    assert len(vectors) == 2
    assert ["b.png" in broken.messages[0], "gone.png" in broken.messages[1]] == [True, True]


def test_a_killed_build_keeps_what_it_had(
    index: Index, images: list[Path], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval_index, "_SAVE_EVERY", 1)
    entry = retrieval_index._entry

    def dies(model: XDecoder, embedding: Embedding, image: Path) -> Any:
        if image.name == "c.png":
            raise KeyboardInterrupt
        return entry(model, embedding, image)

    with monkeypatch.context() as patch:
        patch.setattr(retrieval_index, "_entry", dies)
        with pytest.raises(KeyboardInterrupt):
            index(images)
    made.clear()
    assert len(index(images)[0]) == 3
    assert made == ["c.png"]


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(
    images: list[Path], tiny_model: XDecoder, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "index"
    with pytest.raises(DataError, match=r"file/index: must be a file that can be written; got"):
        index_images(path, images, tiny_model, fit=FIT, broken=Broken())
