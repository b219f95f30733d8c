"""Folders of label pictures: which are read, and which mistakes are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluation.files import FileOptions, score_files
from tests.testing.answer_files import refused


def labels(path: Path, values: list[list[int]], dtype: type = np.uint8) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.array(values, dtype=dtype)).save(path)


def test_sixteen_bit_labels_and_several_ignored_values_count(tmp_path: Path) -> None:
    labels(tmp_path / "truth" / "a.png", [[0, 400, 400], [65535, 9, 400]], np.uint16)
    labels(tmp_path / "found" / "a.tif", [[0, 400, 9], [3, 400, 400]], np.uint16)
    options = FileOptions(ignore=(65535, 9))
    report = score_files(
        "semantic", predictions=tmp_path / "found", truth=tmp_path / "truth", options=options
    )
    assert report["details"]["num_classes"] == 400
    assert report["miou"] == pytest.approx((1 + 2 / 3) / 2)
    assert report["per_class"] == {"0": {"iou": 1.0}, "400": {"iou": 2 / 3}}


def test_without_a_count_the_largest_label_says_how_many_classes(tmp_path: Path) -> None:
    labels(tmp_path / "truth" / "a.png", [[0, 1, 255]])
    labels(tmp_path / "found" / "a.png", [[0, 4, 255]])
    report = score_files("semantic", predictions=tmp_path / "found", truth=tmp_path / "truth")
    assert report["details"]["num_classes"] == 5
    assert (report["miou"], report["details"]["num_classes_in_mean"]) == (pytest.approx(1 / 3), 3)


@pytest.mark.parametrize(
    ("true", "found", "options", "text"),
    [
        ({"a": [[0, 1]]}, {"b": [[0, 1]]}, {}, r"1 are missing: 'a'"),
        ({"a": [[0, 1]]}, {"a": [[0], [1]]}, {}, "one size; got"),
        ({"a": [[0, 7]]}, {"a": [[0, 1]]}, {"num_classes": 2}, r"0\.\.1 or ignored \(255\); got 7"),
        ({"a": [[0, 7]]}, {"a": [[0, 1]]}, {"num_classes": 0}, "num_classes must be positive"),
        ({}, {"a": [[0, 1]]}, {}, "must hold label pictures"),
        ({"a": [[[1, 2, 3]] * 2]}, {"a": [[0, 1]]}, {}, "one label a pixel .* Colours must be"),
    ],
)
def test_mistakes_in_label_folders_are_named(
    tmp_path: Path, true: dict, found: dict, options: dict[str, Any], text: str
) -> None:
    for side, pictures in (("truth", true), ("found", found)):
        (tmp_path / side).mkdir()
        for name, values in pictures.items():
            labels(tmp_path / side / f"{name}.png", values)
    refused("semantic", tmp_path / "found", tmp_path / "truth", text, **options)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    labels(tmp_path / "truth" / "a.png", [[0, 1]])
    refused("semantic", tmp_path / "gone", tmp_path / "truth", "there is no such folder")


def test_a_name_with_two_suffixes_is_ambiguous(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        labels(tmp_path / "truth" / name, [[0, 1]])
    refused("semantic", tmp_path / "truth", tmp_path / "truth", "must be unique without suffix")
