import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluation.panoptic import (
    PanopticPredictions,
    ids_to_rgb,
    rgb_to_ids,
    score_panoptic,
    score_predictions,
)

CATEGORIES = [
    {"id": 7, "name": "cup", "isthing": 1},
    {"id": 11, "name": "ball", "isthing": 1},
    {"id": 300, "name": "sand", "isthing": 0},
]


def random_map(random: np.random.Generator, num_segments: int) -> np.ndarray:
    """Overlapping rectangles on void, with ids beyond one byte."""
    ids = np.zeros((30, 44), dtype=np.int64)
    for _ in range(num_segments):
        top, left = random.integers(0, 25), random.integers(0, 38)
        height, width = random.integers(2, 25), random.integers(2, 30)
        ids[top : top + height, left : left + width] = random.integers(1, 2**24)
    return ids


def write_truth(folder: Path, random: np.random.Generator, num_images: int) -> Path:
    path = folder / "truth.json"
    path.with_suffix("").mkdir()
    annotations, images = [], []
    for image_id in range(1, num_images + 1):
        ids = random_map(random, int(random.integers(0, 6)))
        name = f"{image_id}.png"
        Image.fromarray(ids_to_rgb(ids)).save(path.with_suffix("") / name)
        segments = [
            {
                "id": int(value),
                "category_id": int(random.choice([7, 11, 300])),
                "iscrowd": int(random.random() < 0.2),
                "area": int((ids == value).sum()),
            }
            for value in np.unique(ids)
            if value
        ]
        annotations.append({"image_id": image_id, "file_name": name, "segments_info": segments})
        images.append({"id": image_id, "height": 30, "width": 44, "file_name": f"{image_id}.jpg"})
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES})
    )
    return path


def damaged(path: Path, random: np.random.Generator) -> PanopticPredictions:
    """The truth moved, with segments painted over and some classes exchanged."""
    predictions = PanopticPredictions()
    for row in json.loads(path.read_text())["annotations"]:
        ids = rgb_to_ids(np.array(Image.open(path.with_suffix("") / row["file_name"])))
        ids = np.roll(ids, int(random.integers(0, 4)), axis=1)
        ids[int(random.integers(20, 30)) :] = int(random.integers(0, 3))
        names = {segment["id"]: segment["category_id"] for segment in row["segments_info"]}
        present = [int(value) for value in np.unique(ids) if value]
        classes = {
            value: names.get(value, 7) if random.random() < 0.8 else int(random.choice([11, 300]))
            for value in present
        }
        predictions.add(row["image_id"], ids, classes)
    return predictions


def test_ids_survive_the_way_through_colours() -> None:
    ids = np.array([[0, 255, 256], [65535, 65536, 2**24 - 1]])
    assert (rgb_to_ids(ids_to_rgb(ids)) == ids).all()


@pytest.mark.parametrize("seed", range(12))
def test_scores_equal_panopticapi_on_hostile_cases(tmp_path: Path, seed: int) -> None:
    evaluation = pytest.importorskip("panopticapi.evaluation")
    random = np.random.default_rng(seed)
    truth = write_truth(tmp_path, random, num_images=9)
    predicted = tmp_path / "predicted.json"
    damaged(truth, random).write(predicted)
    ours = score_panoptic(
        truth_json=truth,
        truth_folder=truth.with_suffix(""),
        predicted_json=predicted,
        predicted_folder=predicted.with_suffix(""),
    )
    categories = {row["id"]: row for row in CATEGORIES}
    pairs = [
        (true, mine)
        for true, mine in zip(
            json.loads(truth.read_text())["annotations"],
            json.loads(predicted.read_text())["annotations"],
            strict=True,
        )
    ]
    theirs = evaluation.pq_compute_single_core(
        0, pairs, str(truth.with_suffix("")), str(predicted.with_suffix("")), categories
    )
    groups = ((ours.all, None), (ours.things, True), (ours.stuff, False))
    for score, is_thing in groups:
        expected = theirs.pq_average(categories, isthing=is_thing)[0]
        assert score.num_classes == expected["n"]
        assert (score.pq, score.sq, score.rq) == pytest.approx(
            (expected["pq"], expected["sq"], expected["rq"]), abs=1e-12
        )


def test_only_the_images_asked_for_count(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    truth = write_truth(tmp_path, random, num_images=6)
    predictions = damaged(truth, random)
    folder = truth.with_suffix("")
    everything = score_predictions(
        predictions, truth_json=truth, truth_folder=folder, image_ids=range(1, 7)
    )
    some = score_predictions(predictions, truth_json=truth, truth_folder=folder, image_ids=[2, 5])
    assert some.all.pq != everything.all.pq


def test_merged_parts_equal_the_whole(tmp_path: Path) -> None:
    truth = write_truth(tmp_path, np.random.default_rng(4), num_images=5)
    whole, parts = damaged(truth, np.random.default_rng(1)), PanopticPredictions()
    parts.merge(damaged(truth, np.random.default_rng(1)))
    folder = truth.with_suffix("")
    scores = [
        score_predictions(each, truth_json=truth, truth_folder=folder, image_ids=range(1, 6))
        for each in (whole, parts)
    ]
    assert scores[0] == scores[1]


def test_a_segment_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image 5 must have pixels .* ids \[3\], .* \[3, 9\]"):
        PanopticPredictions().add(5, np.full((2, 3), 3), {3: 7, 9: 7})


def test_the_recorded_damage_scores_as_recorded(shared_dir: Path) -> None:
    folder = shared_dir / "metric_refs" / "panoptic_pq" / "coco_mini_val"
    expected = json.loads((folder / "expected.json").read_text())
    ours = score_panoptic(
        truth_json=folder / "gt_panoptic.json",
        truth_folder=folder / "gt_panoptic",
        predicted_json=folder / "pred_panoptic.json",
        predicted_folder=folder / "pred_panoptic",
    )
    for name, score in (("All", ours.all), ("Things", ours.things), ("Stuff", ours.stuff)):
        row = expected[name]
        assert (score.pq, score.sq, score.rq) == pytest.approx(
            (row["pq"], row["sq"], row["rq"]), abs=1e-12
        )
    for category, score in ours.per_class.items():
        assert score.pq == pytest.approx(expected["per_class"][str(category)]["pq"], abs=1e-12)


def test_truth_against_itself_is_perfect_over_its_classes(shared_dir: Path) -> None:
    folder = shared_dir / "metric_refs" / "panoptic_pq" / "panopticapi_sample_data"
    truth, pngs = folder / "panoptic_examples.json", folder / "panoptic_examples"
    ours = score_panoptic(
        truth_json=truth, truth_folder=pngs, predicted_json=truth, predicted_folder=pngs
    )
    assert (ours.all.pq, ours.all.num_classes) == (1.0, 8)
