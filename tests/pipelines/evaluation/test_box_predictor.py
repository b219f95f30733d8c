"""An OpenSeeD as evaluation asks it, and evaluated from the command line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.engine.checkpoint_files import write_tensors
from pipelines.errors import ConfigError
from pipelines.evaluate import main
from pipelines.evaluation.box_predictor import BoxPredictor
from pipelines.evaluation.loading import load_evaluated
from pipelines.evaluation.options import EvaluationOptions, options_of_prediction
from pipelines.evaluation.predictor import FoundSegments
from pipelines.evaluation.predictors import predictor_of, stages_of
from xdecoder.batch import Vocabulary
from xdecoder.openseed.model import OpenSeeD
from xdecoder.prediction import released_prediction
from xdecoder.pretrained import find_weights, load_pretrained
from xdecoder.tasks.detection import Detection

REPOSITORY = Path(__file__).resolve().parents[3]
NAMES = Vocabulary.of("circle", "star", "sky", stuff=("sky",))
OPTIONS = EvaluationOptions(size_hw=(48, 80), text_size_hw=(48, 80), object_threshold=0.0)


@pytest.fixture(scope="module")
def model(boxes_run: Path) -> OpenSeeD:
    found = load_pretrained(boxes_run)
    assert isinstance(found, OpenSeeD)
    return found


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def found_by(model: OpenSeeD, image: np.ndarray, **changes: Any) -> FoundSegments:
    predictor = BoxPredictor(model, options=replace(OPTIONS, **changes))
    return predictor.segment([image], NAMES)[0]


def test_boxes_are_those_that_detection_gives(model: OpenSeeD, image: np.ndarray) -> None:
    found = found_by(model, image)
    assert found.boxes is not None
    answer = model.predict(image, Detection(vocabulary=NAMES, minimum_score=0.0))
    assert [box.class_id for box in found.boxes] == answer.class_ids.tolist()
    corners = [(x, y, x + w, y + h) for _, _, (x, y, w, h) in found.boxes]
    torch.testing.assert_close(torch.tensor(corners), answer.boxes_xyxy_px)
    assert found.segment_ids.shape == found.semantic.shape == (50, 70)
    assert found.classes


def test_released_boxes_are_ranked_by_name_and_mask(model: OpenSeeD, image: np.ndarray) -> None:
    plain = found_by(model, image)
    both = found_by(model, image, box_score="name-and-mask")
    assert plain.boxes
    assert both.boxes
    # masks are never wholly sure
    assert max(box.score for box in both.boxes) < max(box.score for box in plain.boxes)
    assert {box.box_xywh_px for box in both.boxes} == {box.box_xywh_px for box in plain.boxes}


def test_phrases_are_asked_one_by_one(model: OpenSeeD, image: np.ndarray) -> None:
    predictor = BoxPredictor(model, options=OPTIONS)
    together = predictor.refer(image, ["a circle", "the star"])
    alone = predictor.refer(image, ["the star"])
    assert together[1].shape == (50, 70)
    assert (together[1] == alone[0]).all()


def test_what_it_cannot_answer_is_refused(model: OpenSeeD, image: np.ndarray) -> None:
    predictor = predictor_of(model, options=OPTIONS)
    assert isinstance(predictor, BoxPredictor)
    with pytest.raises(ConfigError, match="an OpenSeeD knows no captions; it segments"):
        predictor.caption([image])
    assert stages_of(model, ("segmentation", "captioning")) == ["segmentation", "referring"]


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def words(checkpoint: Path, root: Path, out: Path, *more: object) -> list[str]:
    fixed = ["--checkpoint", checkpoint, "--root", root, "--split", "val", "--out", out, "--quiet"]
    return [*map(str, fixed), "--stages", "segmentation", *map(str, more)]


def boxes_only(scenes_root: Path, target: Path) -> Path:
    """The scenes with nothing but boxes in their truth."""
    shutil.copytree(scenes_root / "images", target / "images")
    (target / "annotations").mkdir()
    name = "instances_val.json"
    document = json.loads((scenes_root / "annotations" / name).read_text())
    for annotation in document["annotations"]:
        annotation["segmentation"] = []
    (target / "annotations" / name).write_text(json.dumps(document))
    return target


def test_a_run_has_pq_ap_of_masks_and_boxes_and_miou(
    boxes_run: Path, scenes_root: Path, tmp_path: Path
) -> None:
    assert main(words(boxes_run, scenes_root, tmp_path)) == 0
    report = report_of(tmp_path)
    assert {"pq", "ap", "box_ap", "box_ap50", "miou"} <= report.keys()
    assert report["protocols"]["box_ap"].endswith("top-100/things/by-name")
    assert report["protocols"]["pq"].endswith("object-0.25/overlap-0.8")
    by_class = report["details"]["per_class"].values()
    per_class = [row["box_ap"] for row in by_class if "box_ap" in row]
    assert report["box_ap"] == pytest.approx(np.mean(per_class))
    predictions = tmp_path / "eval" / f"{scenes_root.name}-val" / "predictions"
    scored = tmp_path / "scored.json"
    truth = scenes_root / "annotations" / "instances_val.json"
    files = ["--predictions", predictions / "boxes.json", "--ground-truth", truth]
    assert main([*map(str, files), "--metric", "box", "--json", str(scored), "--quiet"]) == 0
    assert 100 * json.loads(scored.read_text())["ap"] == report["box_ap"]


def test_a_truth_of_boxes_has_box_ap_only(
    boxes_run: Path, scenes_root: Path, tmp_path: Path
) -> None:
    root = boxes_only(scenes_root, tmp_path / "root")
    assert main(words(boxes_run, root, tmp_path / "out", "--max-images", 2)) == 0
    report = report_of(tmp_path / "out")
    assert {key for key in report if key.startswith(("pq", "ap", "miou", "box_ap"))} == {
        "box_ap", "box_ap50", "box_ap75",
    }  # fmt: skip
    assert report["details"]["num_images_boxes"] == 2


def test_converted_weights_are_asked_as_their_folder_says(
    boxes_run: Path, scenes_root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "converted"
    folder.mkdir()
    weights = find_weights(boxes_run)
    write_tensors(folder / "model.safetensors", load_pretrained(boxes_run).state_dict())
    shutil.copy(weights / "config.json", folder)
    loaded = load_evaluated(folder, ema=True)
    assert loaded.options == replace(
        load_evaluated(boxes_run, ema=True).options, max_images=loaded.options.max_images
    )
    more = ("--max-images", 1)
    assert main(words(folder, scenes_root, tmp_path / "own", *more)) == 0
    assert main(words(folder, scenes_root, tmp_path / "released", *more, "--as-released")) == 0
    released = report_of(tmp_path / "released")["protocols"]["box_ap"]
    assert "bicubic_antialias" in released
    assert released.endswith("by-name-and-mask")
    assert report_of(tmp_path / "own")["checkpoint"]["folder"] == str(folder.resolve())


def test_a_damaged_converted_folder_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    assert main(words(tmp_path, tmp_path, tmp_path / "out")) == 2
    assert "must say kind xdecoder" in capsys.readouterr().err


def test_thresholds_of_sets_are_for_probabilities(
    boxes_run: Path, scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.evaluation import sets

    strict = replace(sets.SETS["scenes"], settings={"object_threshold": 0.8})
    monkeypatch.setitem(sets.SETS, "scenes", strict)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scenes").symlink_to(scenes_root)
    arguments = ["--dataset", "scenes", "--data-root", tmp_path / "data", "--max-images", 1]
    fixed = ["--checkpoint", boxes_run, "--out", tmp_path, "--quiet", "--stages", "segmentation"]
    assert main([*map(str, fixed), *map(str, arguments)]) == 0
    report = json.loads((tmp_path / "eval" / "scenes" / "report.json").read_text())
    assert "object-0.25" in report["protocols"]["pq"]


def test_released_weights_see_pictures_at_their_published_size() -> None:
    options = options_of_prediction(released_prediction())
    assert options.seen_as == "shorter-800-longest-1333"
    assert options.read_as == "squash-224x224"
    assert options.has_global_query
    assert len(options.templates) == 81


@pytest.mark.dist
def test_two_ranks_give_the_digits_of_one(
    boxes_run: Path, scenes_root: Path, tmp_path: Path
) -> None:
    # five images in batches of two: the ranks get two batches and one
    reports = []
    for name, launcher in (("one", []), ("two", ["--nproc-per-node=2"])):
        arguments = words(boxes_run, scenes_root, tmp_path / name, "--batch-size", 2)
        run_ranks(launcher, arguments)
        report = report_of(tmp_path / name)
        reports.append({k: v for k, v in report.items() if "seconds" not in k})
    assert reports[0] == reports[1]
    assert reports[0]["box_ap"] >= 0


def run_ranks(launcher: Sequence[str], arguments: Sequence[str]) -> None:
    start = ["-m", "torch.distributed.run", "--standalone", *launcher] if launcher else []
    subprocess.run(
        [sys.executable, *start, "-m", "pipelines.evaluate", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
        timeout=300,
    )
