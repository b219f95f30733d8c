"""A reduced Mask2Former and MaskFormer through the commands: train, continue, evaluate, predict."""

import json

import numpy as np
import pytest
from PIL import Image

from pipelines import evaluate, predict, pretrain
from pipelines.data.shards import read_manifest
from pipelines.data.stream import build_stream
from pipelines.engine import session
from pipelines.engine.checkpoint import load_model
from pipelines.engine.dry_run import shape_table
from pipelines.prepare import main as prepare
from xdecoder.mask_former.model import MaskFormer

COMMON = (
    "steps=2",
    "parallel.precision=fp32",
    "tracking.wandb=off",
    "tracking.panels_every=2",
    "checkpoint.every_steps=1",
    "schedule.warmup_steps=0",
    "data.num_workers=0",
    "data.protected=",
    "data.segmentation.batch_size=2",
    "data.segmentation.size_hw=64,96",
    "model.backbone.dim=16",
    "model.backbone.depths=1,1,1,1",
    "model.backbone.num_heads=1,2,4,8",
    "model.backbone.window=4",
    "model.pixel_dim=32",
    "model.mask_dim=32",
    "model.pixel_decoder.num_heads=4",
    "model.pixel_decoder.ffn_dim=48",
    "model.decoder.dim=32",
    "model.decoder.num_layers=2",
    "model.decoder.num_heads=4",
    "model.decoder.ffn_dim=40",
    "model.decoder.num_queries=7",
)
CASES = {
    "mask2former_coco_panoptic": (
        "losses.points.num_points=64",
        "model.pixel_decoder.num_layers=1",
    ),
    "maskformer_coco_panoptic": ("model.pixel_decoder.num_layers=1",),
}


def words_of(*changes):
    return [word for change in changes for word in ("--set", change)]


@pytest.fixture(scope="module")
def shards(scenes_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("mask_former") / "shards"
    words = ["coco", "--root", str(scenes_root), "--split", "train", "--out", str(out)]
    assert prepare(words) == 0
    return out


@pytest.fixture(scope="module", params=sorted(CASES))
def run_folder(request, shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / request.param
    words = ["--recipe", request.param, "--shards", str(shards), "--output-dir", str(out)]
    assert pretrain.main([*words, *words_of(*COMMON, *CASES[request.param])]) == 0
    return out


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_keeps_losses_pictures_and_its_class_list(run_folder, shards):
    rows = rows_of(run_folder)
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["segmentation/mask_dice"] > 0 for row in rows)
    (picture,) = (run_folder / "panels").glob("*.png")
    with Image.open(picture) as panel:
        assert panel.width > panel.height
    model, config = load_model(run_folder)
    assert isinstance(model, MaskFormer)
    assert model.class_names == config.model.class_names == read_manifest(shards).names


def test_evaluation_asks_only_for_segments(run_folder, scenes_root, tmp_path):
    words = ["--checkpoint", str(run_folder), "--root", str(scenes_root), "--split", "val"]
    assert evaluate.main([*words, "--out", str(tmp_path), "--quiet"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"pq", "miou", "ap"} <= report.keys()
    assert not any(key.startswith(("refer_", "retrieval_", "caption_")) for key in report)


def test_prediction_takes_a_class_list_from_a_file(run_folder, shards, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    name = read_manifest(shards).names[0]
    (tmp_path / "classes.txt").write_text(f"# what to look for\n{name}\n")
    words = ["--checkpoint", str(run_folder), "--image", str(tmp_path / "photo.png")]
    words += ["--task", "semantic", "--vocabulary", str(tmp_path / "classes.txt")]
    assert predict.main([*words, "--out", str(tmp_path / "out")]) == 0
    facts = json.loads((tmp_path / "out" / "photo_semantic.json").read_text())
    assert [entry["name"] for entry in facts["classes"]] == [name]
    assert facts["classes"][0]["area_px"] == 50 * 90


def test_a_dry_run_shows_the_maps_of_the_pyramid(run_folder, shards):
    model, config = load_model(run_folder)
    batches = next(iter(build_stream(config.data, rank=0, world_size=1, seed=0)))[0]
    table = shape_table(model, batches)
    assert "mask features" in " ".join(map(str, table.columns[0].cells))


def test_a_nan_in_the_matcher_names_step_tensors_and_keys(
    run_folder, shards, tmp_path, monkeypatch, capsys
):
    build = session.build_model_of

    def build_broken(config):
        model = build(config)
        model.head.decoder.heads.mask_mlp.layers[0].bias.data[0] = float("nan")
        return model

    monkeypatch.setattr(session, "build_model_of", build_broken)
    name = run_folder.name
    words = ["--recipe", name, "--shards", str(shards), "--output-dir", str(tmp_path / "run")]
    settings = (*COMMON, *CASES[name], "watch.max_skipped=0")
    assert pretrain.main([*words, *words_of(*settings)]) == 4
    complaint = capsys.readouterr().err
    assert "step 1: match: costs must be finite" in complaint
    assert "has inf or nan in mask_logits" in complaint
    assert "Keys of the batches: " in complaint
