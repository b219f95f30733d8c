import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipelines.predict import main


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A turned picture: 50 high and 90 wide when upright."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


def predicted(tiny_run: Path, photo: Path, task: str, *words: str) -> tuple[int, Path]:
    out = photo.parent / "out"
    asked = ["--checkpoint", str(tiny_run), "--image", str(photo), "--task", task]
    code = main([*asked, "--out", str(out), "--object-threshold", "0", *words])
    return code, out / f"photo_{task}"


@pytest.mark.parametrize(
    ("task", "part", "words"),
    [
        ("panoptic", "segments", ("--vocabulary", "cup, sand", "--stuff", "sand")),
        ("semantic", "classes", ("--vocabulary", "cup,sand")),
        ("instance", "instances", ("--vocabulary", "cup,sand")),
        ("referring", "phrases", ("--text", "a cup")),
        ("referring", "phrases", ("--text", "a cup", "--text", "sand")),
    ],
)
def test_regions_are_drawn_and_written_at_the_upright_size(
    tiny_run: Path, photo: Path, task: str, part: str, words: tuple[str, ...]
) -> None:
    code, stem = predicted(tiny_run, photo, task, *words)
    facts = json.loads(stem.with_name(stem.name + ".json").read_text())
    assert code == 0
    assert facts["size_hw"] == [50, 90]
    for entry in facts[part]:
        region = coco_mask.decode(entry["segmentation"])
        assert region.shape == (50, 90)
        assert region.sum() == entry["area_px"]
    with Image.open(stem.with_name(stem.name + ".png")) as picture:
        assert picture.width > picture.height


def test_a_caption_is_written(tiny_run: Path, photo: Path) -> None:
    code, stem = predicted(tiny_run, photo, "caption")
    assert code == 0
    assert isinstance(json.loads(stem.with_name(stem.name + ".json").read_text())["caption"], str)


def test_texts_are_ranked(tiny_run: Path, photo: Path) -> None:
    words = [word for text in ("a cup", "sand", "a ball") for word in ("--text", text)]
    _, stem = predicted(tiny_run, photo, "retrieval", *words)
    ranking = json.loads(stem.with_name(stem.name + ".json").read_text())["ranking"]
    assert {row["text"] for row in ranking} == {"a cup", "sand", "a ball"}
    assert ranking[0]["similarity"] >= ranking[-1]["similarity"]


def test_a_broken_image_is_a_data_error_that_names_it(
    tiny_run: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo.write_bytes(b"\xff\xd8 nothing")
    code, _ = predicted(tiny_run, photo, "caption")
    assert code == 3
    assert "photo.jpg: must be a picture" in capsys.readouterr().err


def test_names_are_needed_where_the_shards_are_gone(
    tiny_run: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = predicted(tiny_run, photo, "panoptic")
    assert code == 2
    assert "got no --vocabulary, and the shards of the run" in capsys.readouterr().err


def test_phrases_are_needed_to_refer(
    tiny_run: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predicted(tiny_run, photo, "referring")[0] == 2
    assert "task referring needs at least one --text" in capsys.readouterr().err
