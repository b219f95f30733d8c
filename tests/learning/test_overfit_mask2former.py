"""A small Mask2Former learns a few photographs by heart, through the commands of a real run."""

import json
from pathlib import Path

import pytest

from tests.learning.test_photographs import NUM_IMAGES, few_images, run

NUM_STEPS = 500
# the published recipe with a pretrained trunk that a package ships, and all else a tenth as large
REDUCED = (
    f"steps={NUM_STEPS}",
    "deterministic=true",
    "parallel.precision=fp32",
    "tracking.wandb=off",
    "tracking.panels_every=0",
    "model.backbone.name=tf_efficientnet_lite0",
    "model.backbone.weights=package",
    "model.backbone.freeze_norm=true",
    "model.backbone.pixel_mean=127.5,127.5,127.5",
    "model.backbone.pixel_std=127.5,127.5,127.5",
    "model.pixel_dim=96",
    "model.mask_dim=96",
    "model.pixel_decoder.num_layers=2",
    "model.pixel_decoder.num_heads=4",
    "model.pixel_decoder.ffn_dim=192",
    "model.decoder.dim=96",
    "model.decoder.num_heads=4",
    "model.decoder.ffn_dim=256",
    "model.decoder.num_layers=4",
    "model.decoder.num_queries=40",
    "losses.points.num_points=768",
    "data.num_workers=0",
    # it is measured on what it has learnt
    "data.protected=",
    "data.segmentation.size_hw=192,256",
    f"data.segmentation.batch_size={NUM_IMAGES}",
    "data.segmentation.augment.flip_prob=0",
    "data.segmentation.augment.scale_range=1,1",
    "optimizer.learning_rate=1e-3",
    "optimizer.backbone_multiplier=0.3",
    "optimizer.clip_norm=5",
    "optimizer.ema_decay=0.95",
    "schedule.kind=cosine",
    "schedule.warmup_steps=20",
)


@pytest.mark.slow
def test_eight_photographs_are_learnt_by_heart(shared_dir: Path, tmp_path: Path) -> None:
    root, shards, out = tmp_path / "root", tmp_path / "shards", tmp_path / "run"
    # a tall picture is padded to the canvas in training and alone in evaluation, which moves its
    # positions; scale jitter teaches that, and learning by heart does without it
    few_images(shared_dir / "data" / "coco_mini", root, wide_only=True)
    run("pipelines.prepare", "coco", "--root", root, "--split", "train", "--out", shards)
    words = [word for change in REDUCED for word in ("--set", change)]
    run("pipelines.pretrain", "--recipe", "mask2former_coco_panoptic", "--shards", shards,
        "--output-dir", out, *words)  # fmt: skip
    run("pipelines.evaluate", "--checkpoint", out, "--root", root, "--split", "train",
        "--out", out)  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report["details"]["num_images"] == NUM_IMAGES
    assert report["pq"] >= 85
    photo = next(iter(sorted((root / "images" / "train2017").glob("*.jpg"))))
    run("pipelines.predict", "--checkpoint", out, "--task", "panoptic", "--image", photo,
        "--out", tmp_path / "seen")  # fmt: skip
    seen = json.loads((tmp_path / "seen" / f"{photo.stem}_panoptic.json").read_text())
    assert isinstance(seen["segments"], list)
