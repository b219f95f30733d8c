"""Panoptic PNGs: where they may lie, and which mistakes in them are named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluation.files import FileOptions, score_files
from pipelines.evaluation.panoptic import ids_to_rgb
from tests.testing.answer_files import SIZE_HW, blob, edited, refused, written


def panoptic_pair(folder: Path) -> tuple[Path, Path]:
    ids = np.where(blob(2, 3), 70000, 0)
    pictures = folder / "pngs"
    pictures.mkdir()
    Image.fromarray(ids_to_rgb(ids)).save(pictures / "a.png")
    row = {"image_id": 1, "file_name": "a.png"}
    segments = [{"id": 70000, "category_id": 7}]
    categories = [{"id": 7, "name": "cup", "isthing": 1}]
    truth = {"annotations": [{**row, "segments_info": segments}], "categories": categories}
    found = {"annotations": [{**row, "segments_info": segments}]}
    return written(folder / "found.json", found), written(folder / "truth.json", truth)


def test_pngs_are_found_in_the_only_folder_that_has_them(tmp_path: Path) -> None:
    found, truth = panoptic_pair(tmp_path)
    assert score_files("panoptic", predictions=found, truth=truth)["pq"] == 1


def test_pngs_in_two_folders_need_a_name(tmp_path: Path) -> None:
    found, truth = panoptic_pair(tmp_path)
    (tmp_path / "others").mkdir()
    Image.fromarray(ids_to_rgb(np.zeros(SIZE_HW, int))).save(tmp_path / "others" / "a.png")
    refused("panoptic", found, truth, "Name the folder with --predictions-folder")
    options = {"predictions_folder": tmp_path / "pngs", "truth_folder": tmp_path / "pngs"}
    report = score_files("panoptic", predictions=found, truth=truth, options=FileOptions(**options))
    assert report["pq"] == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["annotations"].clear(), r"prediction for every image of truth\.json; 1 of 1"),
        (lambda d: d["annotations"].append(d["annotations"][0]), "every image_id must occur once"),
        (lambda d: d["annotations"][0]["segments_info"].clear(), r"\[70000\] occur in only one"),
        (lambda d: d["annotations"][0]["segments_info"][0].pop("id"), "must have id and category"),
        (lambda d: d["annotations"][0]["segments_info"][0].update(id=0), "other than 0, which is"),
        (lambda d: d["annotations"][0]["segments_info"][0].update(category_id=9),
         "every category_id must occur in .*truth.json; 1 do not: 9"),
        (lambda d: d["annotations"][0].update(file_name="b.png"), "b.png"),
        (lambda d: d["annotations"][0].pop("image_id"), "entry 0 must have 'image_id'; it has"),
        (lambda d: d.pop("annotations"), "must be a list of objects, or hold one under"),
    ],
)  # fmt: skip
def test_mistakes_in_panoptic_predictions_are_named(
    tmp_path: Path, change: Callable[[Any], object], text: str
) -> None:
    found, truth = panoptic_pair(tmp_path)
    (tmp_path / "pngs").rename(tmp_path / "found")
    edited(found, change)
    refused("panoptic", found, truth, text, truth_folder=tmp_path / "found")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.pop("categories"), "must list `categories` with id and isthing"),
        (lambda d: d["categories"][0].pop("isthing"), "must have id and isthing; lacks 'isthing'"),
    ],
)
def test_a_truth_without_classes_is_refused(
    tmp_path: Path, change: Callable[[Any], object], text: str
) -> None:
    found, truth = panoptic_pair(tmp_path)
    refused("panoptic", found, edited(truth, change), text)


def test_a_folder_without_one_panoptic_json_is_refused(tmp_path: Path) -> None:
    found, _ = panoptic_pair(tmp_path)
    refused("panoptic", found, tmp_path / "pngs", "or a folder with one; got 0 JSON files")
