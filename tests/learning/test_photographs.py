"""The model learns a few real photographs by heart."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_IMAGES = 8
NUM_STEPS = 400


def few_images(source: Path, root: Path, *, wide_only: bool = False) -> None:
    """A COCO-format folder with the first images that have every kind of annotation."""
    annotations = source / "annotations"
    kinds = ("panoptic", "instances", "captions")
    whole = {
        kind: json.loads((annotations / f"{kind}_train2017.json").read_text()) for kind in kinds
    }
    known = [{entry["image_id"] for entry in whole[kind]["annotations"]} for kind in kinds]
    shown = whole["panoptic"]["images"]
    wanted = {each["id"] for each in shown if each["width"] > each["height"] or not wide_only}
    chosen = set(sorted(set.intersection(wanted, *known))[:NUM_IMAGES])
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "images" / "train2017").symlink_to(source / "images" / "train2017")
    (root / "annotations" / "panoptic_train2017").symlink_to(annotations / "panoptic_train2017")
    (root / "refs").symlink_to(source / "refs")
    for kind, content in whole.items():
        content["images"] = [image for image in content["images"] if image["id"] in chosen]
        content["annotations"] = [
            entry for entry in content["annotations"] if entry["image_id"] in chosen
        ]
        (root / "annotations" / f"{kind}_train2017.json").write_text(json.dumps(content))


def run(module: str, *words: object) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        check=True,
        env=environment,
        cwd=REPOSITORY,
    )


@pytest.mark.slow
def test_eight_photographs_are_learnt_by_heart(shared_dir: Path, tmp_path: Path) -> None:
    root, shards, out = tmp_path / "root", tmp_path / "shards", tmp_path / "run"
    few_images(shared_dir / "data" / "coco_mini", root)
    run("pipelines.prepare", "coco", "--root", root, "--split", "train", "--out", shards)
    changes = (
        f"steps={NUM_STEPS}",
        "data.segmentation.batch_size=8",
        "data.segmentation.augment.flip_prob=0",
        "data.segmentation.augment.scale_range=1,1",
        "data.image_text.batch_size=0",
        "model.decoder.num_latents=40",
        "optimizer.ema_decay=0.95",
    )
    words = [word for change in changes for word in ("--set", change)]
    run("pipelines.pretrain", "--recipe", "coco_mini", "--shards", shards, "--output-dir", out,
        *words)  # fmt: skip
    run("pipelines.evaluate", "--checkpoint", out, "--root", root, "--split", "train",
        "--stages", "segmentation", "--out", out)  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report["details"]["num_images"] == NUM_IMAGES
    assert report["pq"] >= 80
