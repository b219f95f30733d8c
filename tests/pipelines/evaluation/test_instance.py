import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.evaluation.instance import decode_mask, encode_mask, mask_result, score_instances


def blob(top: int, left: int, height: int, width: int) -> np.ndarray:
    region = np.zeros((40, 60), dtype=bool)
    region[top : top + height, left : left + width] = True
    return region


def write_truth(path: Path) -> Path:
    rows = [(1, 3, blob(2, 3, 20, 10)), (1, 5, blob(10, 30, 15, 20)), (2, 3, blob(5, 5, 12, 40))]
    annotations = [
        {
            "id": index + 1,
            "image_id": image_id,
            "category_id": category,
            "segmentation": encode_mask(region),
            "area": int(region.sum()),
            "bbox": [0, 0, 1, 1],
            "iscrowd": 0,
        }
        for index, (image_id, category, region) in enumerate(rows)
    ]
    images = [{"id": image_id, "height": 40, "width": 60} for image_id in (1, 2)]
    categories = [{"id": 3, "name": "cup"}, {"id": 5, "name": "ball"}]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path


def test_a_region_survives_its_code() -> None:
    region = np.random.default_rng(0).random((17, 23)) > 0.5
    assert (decode_mask(encode_mask(region)) == region).all()


def test_the_truth_scores_one_and_a_wrong_class_costs_its_share(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json")
    right = [
        mask_result(image_id=1, category_id=3, score=0.9, region=blob(2, 3, 20, 10)),
        mask_result(image_id=1, category_id=5, score=0.8, region=blob(10, 30, 15, 20)),
        mask_result(image_id=2, category_id=3, score=0.7, region=blob(5, 5, 12, 40)),
    ]
    assert score_instances(truth_json=truth, results=right, image_ids=[1, 2]).ap == pytest.approx(1)
    wrong = [right[0], {**right[1], "category_id": 3}, right[2]]
    scores = score_instances(truth_json=truth, results=wrong, image_ids=[1, 2])
    assert scores.per_class_ap[5] == 0
    assert scores.ap < 0.6


def test_only_the_images_asked_for_count(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json")
    rows = [mask_result(image_id=2, category_id=3, score=0.7, region=blob(5, 5, 12, 40))]
    assert score_instances(truth_json=truth, results=rows, image_ids=[2]).ap == pytest.approx(1)
    assert score_instances(truth_json=truth, results=rows, image_ids=[1, 2]).ap < 0.9


def test_no_results_score_zero(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json")
    assert score_instances(truth_json=truth, results=[], image_ids=[1, 2]).ap == 0


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_published_figures_are_reproduced(shared_dir: Path, kind: str) -> None:
    folder = shared_dir / "metric_refs" / "instance_ap"
    results = json.loads((folder / f"instances_val2014_fake{kind}100_results.json").read_text())
    truth = folder / "instances_val2014_100.json"
    images = [row["id"] for row in json.loads(truth.read_text())["images"]]
    scores = score_instances(truth_json=truth, results=results, image_ids=images, kind=kind)
    expected = json.loads((folder / "expected.json").read_text())[kind]
    assert scores.stats == pytest.approx(tuple(expected), abs=1e-12)
