import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.shards import read_manifest
from pipelines.data.statistics import (
    draw_histogram,
    print_statistics,
    statistics_of,
    write_statistics,
)
from pipelines.drawing import class_colour
from pipelines.errors import DataError


@pytest.fixture
def edited(shards: Path, tmp_path: Path):
    """A copy of the shards whose manifest a test may change."""

    def change(function) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(shards, folder, dirs_exist_ok=True)
        document = json.loads((folder / "manifest.json").read_text())
        function(document)
        (folder / "manifest.json").write_text(json.dumps(document))
        return folder

    return change


def _protect(document: dict) -> None:
    document["protect"] = {"a:val": {"num_images": 9, "num_hashed": 7, "ids_sha256": "0"}}
    document["filter_sha256"] = "abcdef" * 10
    document["licence"] = "CC BY 4.0"
    document["splits"]["train"]["removed"] = [
        {"key": key, "protects": "a:val", "reason": reason}
        for key, reason in (("1", "id"), ("2", "id"), ("3", "bytes"))
    ]


def test_statistics_agree_with_the_shards(shards: Path) -> None:
    statistics = statistics_of(shards)
    train = statistics["splits"]["train"]
    sizes = [path.stat().st_size for path in shards.glob("train-*.tar")]
    assert (train["samples"], train["shards"]) == (13, len(sizes))
    assert train["bytes"] == sum(sizes)
    assert train["bytes_per_shard"] == [min(sizes), max(sizes)]
    assert sum(train["class_histogram"].values()) == train["counts"]["segments"]
    frequencies = list(train["class_histogram"].values())
    assert frequencies == sorted(frequencies, reverse=True)
    assert train["classes_seen"] == sum(count > 0 for count in frequencies)


def test_tables_name_what_was_removed_and_why(edited, capsys: pytest.CaptureFixture) -> None:
    print_statistics(edited(_protect))
    text = capsys.readouterr().out
    assert "licence: CC BY 4.0" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert ["removed: id in a:val", "2"] in rows
    assert ["removed: bytes in a:val", "1"] in rows
    assert ["a:val", "9", "7"] in rows
    assert ["images with panoptic", "13"] in rows


def test_unprotected_shards_say_so(shards: Path, capsys: pytest.CaptureFixture) -> None:
    print_statistics(shards)
    assert "no evaluation set is protected" in capsys.readouterr().out


def test_rare_classes_are_summed_in_the_table(edited, capsys: pytest.CaptureFixture) -> None:
    def many(document: dict) -> None:
        histogram = {f"class {n:03d}": 400 - n for n in range(30)}
        document["splits"]["train"]["class_histogram"] = histogram

    print_statistics(edited(many))
    text = capsys.readouterr().out
    assert "30 of 30 classes occur" in text
    assert f"{sum(400 - n for n in range(20, 30))}" in text
    assert "10 others" in text
    assert "class 020" not in text


def test_files_hold_the_numbers_and_a_picture_of_each_split(shards: Path, tmp_path: Path) -> None:
    paths = write_statistics(shards, tmp_path / "stats")
    assert [path.name for path in paths] == [
        "stats.json",
        "histogram_train.png",
        "histogram_val.png",
    ]
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(statistics_of(shards)))
    for path in paths[1:]:
        with Image.open(path) as picture:
            assert picture.width > picture.height


def test_bars_are_as_long_as_classes_are_frequent(edited) -> None:
    def without_circles(document: dict) -> None:
        document["splits"]["train"]["class_histogram"]["circle"] = 0

    manifest = read_manifest(edited(without_circles))
    histogram = manifest.splits["train"].class_histogram
    pixels = np.asarray(draw_histogram(manifest, "train"))
    lengths = {
        name: int((pixels == class_colour(place)).all(axis=2).sum(axis=1).max())
        for place, name in enumerate(manifest.names)
    }
    assert max(lengths, key=lengths.__getitem__) == max(histogram, key=histogram.__getitem__)
    assert all((lengths[name] > 0) == (count > 0) for name, count in histogram.items())


def test_many_classes_stand_in_columns(edited) -> None:
    def many(document: dict) -> None:
        names = [f"class {n}" for n in range(151)]
        document["names"], document["is_thing"] = names, [True] * 151
        for split in document["splits"].values():
            split["class_histogram"] = dict.fromkeys(names, 3)

    picture = draw_histogram(read_manifest(edited(many)), "train")
    assert picture.width > 2000
    assert picture.height < 1600


def test_a_folder_without_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shards need a manifest"):
        write_statistics(tmp_path, tmp_path / "out")
