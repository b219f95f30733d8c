"""Every figure at hand, published or computed with the official code, through the command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate import main

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime")


@pytest.fixture
def refs(shared_dir: Path) -> Path:
    return shared_dir / "metric_refs"


def scored(predictions: Path, truth: Path, metric: str, out: Path, *words: object) -> Any:
    code = main(
        ["--predictions", str(predictions), "--ground-truth", str(truth), "--metric", metric,
         "--json", str(out / "report.json"), "--quiet", *map(str, words)]
    )  # fmt: skip
    assert code == 0
    return json.loads((out / "report.json").read_text())


def written(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_panoptic_quality_is_the_official_codes_to_the_last_digit(
    refs: Path, tmp_path: Path
) -> None:
    folder = refs / "panoptic_pq" / "coco_mini_val"
    report = scored(
        folder / "pred_panoptic.json", folder / "gt_panoptic.json", "panoptic", tmp_path
    )
    expected = json.loads((folder / "expected.json").read_text())
    assert {name: report["official"][name] for name in ("All", "Things", "Stuff")} == {
        name: expected[name] for name in ("All", "Things", "Stuff")
    }
    per_class = report["official"]["per_class"]
    assert {key: per_class[key] for key in expected["per_class"]} == expected["per_class"]
    assert (report["pq"], report["pq_things"]) == (expected["All"]["pq"], expected["Things"]["pq"])


def test_truth_against_itself_is_perfect_over_its_classes(refs: Path, tmp_path: Path) -> None:
    truth = refs / "panoptic_pq" / "panopticapi_sample_data" / "panoptic_examples.json"
    report = scored(truth, truth, "panoptic", tmp_path)
    assert (report["pq"], report["sq"], report["rq"]) == (1.0, 1.0, 1.0)
    assert report["details"]["num_classes_in_mean"] == 8


@pytest.mark.parametrize(("metric", "kind"), [("instance", "segm"), ("box", "bbox")])
def test_average_precision_is_the_published_one_to_the_last_digit(
    refs: Path, tmp_path: Path, metric: str, kind: str
) -> None:
    folder = refs / "instance_ap"
    results = folder / f"instances_val2014_fake{kind}100_results.json"
    report = scored(results, folder / "instances_val2014_100.json", metric, tmp_path)
    expected = json.loads((folder / "expected.json").read_text())[kind]
    assert report["official"]["stats"] == expected
    assert (report["ap"], report["ap50"], report["ar_large"]) == (
        expected[0], expected[1], expected[11],
    )  # fmt: skip


def test_the_published_scene_parsing_sample_is_reproduced(refs: Path, tmp_path: Path) -> None:
    folder = refs / "semantic_miou" / "ade20k_sampleData"
    words = ("--ignore", 0, "--num-classes", 150)
    report = scored(folder / "predictions", folder / "annotations", "semantic", tmp_path, *words)
    assert report["official"]["Mean IoU over 150 classes"] == 0.1
    assert (report["pixel_accuracy"], report["miou"]) == (1.0, 1.0)
    assert report["details"]["num_classes_in_mean"] == 15


@pytest.mark.parametrize(
    ("name", "bleu", "rouge", "cider"),
    [
        ("good", (0.6667, 0.4899, 0.3469, 0.0), 0.4280, 0.5637),
        ("bad", (0.4815, 0.2404, 0.1359, 0.0), 0.3121, 0.2790),
    ],
)
def test_the_published_caption_example_is_reproduced(
    refs: Path, tmp_path: Path, name: str, bleu: tuple[float, ...], rouge: float, cider: float
) -> None:
    folder = refs / "captions" / "clipscore_example"
    report = scored(
        folder / f"{name}_captions.json", folder / "refs.json", "caption", tmp_path,
        "--java", "never",
    )  # fmt: skip
    assert tuple(round(report[f"bleu{n}"], 4) for n in (1, 2, 3, 4)) == bleu
    assert (round(report["rouge_l"], 4), round(report["cider"], 4)) == (rouge, cider)
    assert report["meteor"] is None
    assert report["skipped"] == {"meteor": "java=never"}


def fakecap(refs: Path, folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """The 126 recorded images as COCO files, and what they must give."""
    recorded = json.loads(
        (refs / "captions" / "coco_fakecap" / "fakecap_val2017_intersection.json").read_text()
    )
    truth = [
        {"image_id": int(key), "caption": caption}
        for key, captions in recorded["references_raw"].items()
        for caption in captions
    ]
    results = [
        {"image_id": int(key), "caption": caption}
        for key, caption in recorded["hypotheses_raw"].items()
    ]
    paths = (
        written(folder / "results.json", results),
        written(folder / "truth.json", {"annotations": truth}),
    )
    return *paths, recorded


def human(refs: Path, folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """One human caption of each image against the others."""
    shared = refs.parent / "data" / "coco_mini" / "annotations" / "captions_val2017.json"
    captions: dict[int, list[str]] = {}
    for row in sorted(json.loads(shared.read_text())["annotations"], key=lambda row: row["id"]):
        captions.setdefault(row["image_id"], []).append(row["caption"])
    results = {key: values[0] for key, values in captions.items()}
    truth = {key: captions[key][1:] for key in sorted(captions)}
    recorded = json.loads((refs / "captions/coco_mini_val_human_leave_one_out.json").read_text())
    paths = written(folder / "results.json", results), written(folder / "truth.json", truth)
    return *paths, recorded


@pytest.mark.parametrize("make", [fakecap, human])
def test_recorded_caption_scores_are_reproduced_to_the_last_digit_without_java(
    refs: Path, tmp_path: Path, make: Any
) -> None:
    results, truth, recorded = make(refs, tmp_path)
    report = scored(results, truth, "caption", tmp_path, "--java", "never")
    expected = {key: value for key, value in recorded["expected"].items() if key != "METEOR"}
    assert report["official"] == expected
    # the scorer's logarithm is numpy's, whose last bit depends on the processor
    assert report["per_item"] == pytest.approx(recorded["cider_per_image"], rel=1e-14)


@needs_java
@pytest.mark.slow
@pytest.mark.parametrize("make", [fakecap, human])
def test_recorded_caption_scores_are_reproduced_to_the_last_digit_with_java(
    refs: Path, tmp_path: Path, make: Any
) -> None:
    results, truth, recorded = make(refs, tmp_path)
    report = scored(results, truth, "caption", tmp_path, "--java", "need")
    assert report["official"] == recorded["expected"]
    assert report["details"]["num_captions_where_tokenizers_differ"] == 0


@needs_java
@pytest.mark.slow
@pytest.mark.parametrize(("name", "meteor"), [("good", 0.3444), ("bad", 0.1861)])
def test_the_published_meteor_is_reproduced(
    refs: Path, tmp_path: Path, name: str, meteor: float
) -> None:
    folder = refs / "captions" / "clipscore_example"
    results = folder / f"{name}_captions.json"
    report = scored(results, folder / "refs.json", "caption", tmp_path, "--java", "need")
    assert round(report["meteor"], 4) == meteor


def test_a_thousand_captions_are_scored_where_the_truth_has_them(
    refs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, truth, _ = fakecap(refs, tmp_path)
    results = refs / "captions" / "coco_fakecap" / "captions_val2014_fakecap_results.json"
    code = main(
        ["--predictions", str(results), "--ground-truth", str(truth), "--metric", "caption"]
    )
    assert code == 3
    assert "every image_id must occur in" in capsys.readouterr().err
