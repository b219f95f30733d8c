"""Our evaluators against the official programs on random hostile cases: identical, not close."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.evaluation.files import score_files
from pipelines.evaluation.files.detection import NAMES
from pipelines.evaluation.panoptic import ids_to_rgb

NUM_CASES = 300
SIZE_HW = (24, 34)
CATEGORIES = [
    {"id": 7, "name": "cup", "isthing": 1},
    {"id": 11, "name": "ball", "isthing": 1},
    {"id": 300, "name": "sand", "isthing": 0},
    {"id": 4, "name": "never there", "isthing": 0},
]


def random_map(random: np.random.Generator) -> np.ndarray:
    """Up to six rectangles over each other on void, ids beyond one byte; sometimes none."""
    ids = np.zeros(SIZE_HW, dtype=np.int64)
    for _ in range(random.integers(0, 6)):
        top, left = random.integers(0, 20), random.integers(0, 30)
        height, width = random.integers(1, 24), random.integers(1, 30)
        ids[top : top + height, left : left + width] = random.integers(1, 2**24)
    return ids


def segments_of(random: np.random.Generator, ids: np.ndarray) -> list[dict[str, Any]]:
    present = [int(value) for value in np.unique(ids) if value]
    return [{"id": each, "category_id": int(random.choice([7, 7, 11, 300]))} for each in present]


def write_side(path: Path, rows: list[tuple[np.ndarray, list[dict[str, Any]]]]) -> Path:
    path.with_suffix("").mkdir(exist_ok=True)
    annotations = []
    for index, (ids, segments) in enumerate(rows):
        name = f"{index}.png"
        Image.fromarray(ids_to_rgb(ids)).save(path.with_suffix("") / name, compress_level=1)
        annotations.append({"image_id": index, "file_name": name, "segments_info": segments})
    path.write_text(json.dumps({"annotations": annotations, "categories": CATEGORIES}))
    return path


def panoptic_case(folder: Path, random: np.random.Generator) -> tuple[Path, Path]:
    """Truth with crowds, void and segments that lost their pixels; predictions that are near it."""
    truth, found = [], []
    for _ in range(3):
        ids = random_map(random)
        segments = segments_of(random, ids)
        for row in segments:
            # the official tool believes the area in the file, also where it is wrong
            wrong = int(random.integers(0, 20)) if random.random() < 0.2 else 0
            area = int((ids == row["id"]).sum()) + wrong
            row |= {"iscrowd": int(random.random() < 0.3), "area": area}
        if random.random() < 0.2:
            segments.append({"id": 2**24 - 1, "category_id": 11, "iscrowd": 0, "area": 5})
        truth.append((ids, segments))
        moved = (
            np.roll(ids, int(random.integers(0, 4)), axis=1)
            if random.random() < 0.8
            else (random_map(random))
        )
        classes = {row["id"]: row["category_id"] for row in segments}
        guessed = segments_of(random, moved)
        for row in guessed:
            if random.random() < 0.8:
                row["category_id"] = classes.get(row["id"], row["category_id"])
        found.append((moved, guessed))
    return write_side(folder / "truth.json", truth), write_side(folder / "found.json", found)


def official_panoptic(truth: Path, found: Path) -> dict[str, Any]:
    evaluation = pytest.importorskip("panopticapi.evaluation")
    categories = {row["id"]: row for row in CATEGORIES}
    sides = [json.loads(path.read_text())["annotations"] for path in (truth, found)]
    folders = [str(path.with_suffix("")) for path in (truth, found)]
    with contextlib.redirect_stdout(io.StringIO()):
        sums = evaluation.pq_compute_single_core(
            0, list(zip(*sides, strict=True)), *folders, categories
        )
    groups = {}
    for name, is_thing in (("All", None), ("Things", True), ("Stuff", False)):
        # the official average divides by zero where no class occurs
        with contextlib.suppress(ZeroDivisionError):
            groups[name], per_class = sums.pq_average(categories, isthing=is_thing)
            if is_thing is None:
                groups["per_class"] = {str(key): row for key, row in per_class.items()}
    return groups


def test_panoptic_quality_equals_panopticapi_in_every_digit(tmp_path: Path) -> None:
    num_with_classes = 0
    for seed in range(NUM_CASES):
        truth, found = panoptic_case(tmp_path, np.random.default_rng(seed))
        ours = score_files("panoptic", predictions=found, truth=truth)["official"]
        theirs = official_panoptic(truth, found)
        assert {name: ours[name] for name in theirs} == theirs, f"case {seed}"
        num_with_classes += len(theirs) == 4
    assert num_with_classes > NUM_CASES / 2


def random_region(random: np.random.Generator) -> np.ndarray:
    region = np.zeros(SIZE_HW, dtype=np.uint8, order="F")
    top, left = random.integers(0, 20), random.integers(0, 30)
    region[top : top + random.integers(0, 24), left : left + random.integers(0, 30)] = 1
    return region


def described(region: np.ndarray) -> dict[str, Any]:
    code = rle_codec.encode(region)
    return {
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
        "bbox": rle_codec.toBbox(code).tolist(),
        "area": float(rle_codec.area(code)),
    }


def detection_case(folder: Path, random: np.random.Generator) -> tuple[Path, Path]:
    """Objects with crowds and empty masks; results near, far, twice, with equal scores, or none."""
    annotations, results = [], []
    for image_id in (31, 5, 12):
        for _ in range(random.integers(0, 5)):
            region = random_region(random)
            category = int(random.choice([7, 11]))
            row = {"image_id": image_id, "category_id": category, **described(region)}
            crowd = int(random.random() < 0.25)
            annotations.append({"id": len(annotations) + 1, "iscrowd": crowd, **row})
            for _ in range(random.integers(0, 3)):
                moved = np.asfortranarray(np.roll(region, int(random.integers(0, 4)), axis=1))
                guess = {**row, "category_id": category if random.random() < 0.8 else 300}
                results.append({**guess, **described(moved)})
        if random.random() < 0.5:
            results.append(
                {"image_id": image_id, "category_id": 11, **described(random_region(random))}
            )
    for row in results:
        row["score"] = float(random.integers(1, 6)) / 5
        del row["area"]
    height, width = SIZE_HW
    images = [{"id": image_id, "height": height, "width": width} for image_id in (31, 5, 12)]
    truth, found = folder / "truth.json", folder / "found.json"
    document = {"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES}
    truth.write_text(json.dumps(document))
    found.write_text(json.dumps(results))
    return truth, found


def official_detection(truth: Path, found: Path, kind: str) -> list[float]:
    rows = json.loads(found.read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        ours = COCO(str(truth))
        if kind == "segm":
            rows = [{key: row[key] for key in row if key != "bbox"} for row in rows]
        evaluation = COCOeval(ours, ours.loadRes(rows), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize(("metric", "kind"), [("instance", "segm"), ("box", "bbox")])
def test_average_precision_equals_pycocotools_in_every_digit(
    tmp_path: Path, metric: str, kind: str
) -> None:
    num_without_objects = 0
    for seed in range(NUM_CASES):
        random = np.random.default_rng(1000 * len(kind) + seed)
        truth, found = detection_case(tmp_path, random)
        if not json.loads(found.read_text()):
            continue
        report = score_files(metric, predictions=found, truth=truth)
        theirs = official_detection(truth, found, kind)
        assert report["official"]["stats"] == theirs, f"case {seed}"
        figures = [value if value > -1 else None for value in theirs]
        assert [report[name] for name in NAMES] == figures
        num_without_objects += theirs[3] == -1
    assert num_without_objects < NUM_CASES / 2
