"""A reduced OpenSeeD through the commands: train on segments and boxes, continue, start from it."""

import json
import shutil

import pytest
import torch
from PIL import Image

from pipelines import pretrain
from pipelines.data.shards import read_manifest
from pipelines.engine.checkpoint import load_model
from pipelines.prepare import main as prepare
from xdecoder.images import ImageFit
from xdecoder.openseed.model import OpenSeeD
from xdecoder.prediction import SIMILARITY_THRESHOLD

COMMON = (
    "steps=4",
    "tracking.panels_every=4",
    "tracking.log_every=1",
    "checkpoint.every_steps=2",
    "schedule.warmup_steps=0",
    "data.segmentation.batch_size=2",
    "data.detection.batch_size=3",
    "data.segmentation.size_hw=64,96",
    "data.detection.size_hw=64,96",
    "model.backbone.name=test_efficientnet",
    "model.backbone.weights=random",
    "model.dim=32",
    "model.text.num_layers=1",
    "model.decoder.num_layers=2",
    "model.decoder.num_queries=12",
    "model.decoder.ffn_dim=40",
    "losses.points.num_points=64",
)


def words_of(*changes):
    return [word for change in changes for word in ("--set", change)]


@pytest.fixture(scope="module")
def shards(scenes_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("openseed") / "shards"
    words = ["coco", "--root", str(scenes_root), "--split", "train", "--out", str(out)]
    assert prepare(words) == 0
    return out


@pytest.fixture(scope="module")
def train(shards):
    """Trains into a folder, and returns its rows of metrics by step."""

    def trained(folder, *changes):
        words = ["--recipe", "openseed_scenes", "--shards", str(shards)]
        words += ["--output-dir", str(folder), *words_of(*COMMON, *changes)]
        assert pretrain.main(words) == 0
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return {row["step"]: row for row in map(json.loads, lines)}

    return trained


@pytest.fixture(scope="module")
def run_folder(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "joint"
    train(folder)
    return folder


def test_a_step_has_losses_of_segments_and_of_boxes(run_folder):
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        for term in ("label", "box_l1", "box_giou", "mask_bce", "label_dn", "mask_dice_dn"):
            assert row[f"segmentation/{term}"] > 0, term
        for term in ("label", "box_l1", "box_giou", "label_dn", "box_l1_selected"):
            assert row[f"detection/{term}"] > 0, term
        total = row["loss/segmentation"] + row["loss/detection"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
    (picture,) = (run_folder / "panels").glob("*.png")
    with Image.open(picture) as panel:
        assert panel.height > panel.width


def test_the_model_of_a_run_knows_how_it_wants_to_be_asked(run_folder, shards):
    model = OpenSeeD.from_pretrained(run_folder)
    assert model.prediction.segmentation == ImageFit(size_hw=(64, 96))
    assert model.prediction.vocabulary.names == read_manifest(shards).names
    assert model.prediction.object_threshold == SIMILARITY_THRESHOLD
    again, config = load_model(run_folder)
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert config.losses.templates == model.prediction.templates


def test_a_run_that_lost_its_last_steps_takes_them_again(train, run_folder, tmp_path):
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    stopped = shutil.copytree(run_folder, tmp_path / "stopped", symlinks=True)
    # as a kill before the last checkpoint was complete leaves it
    shutil.rmtree(stopped / "checkpoints" / "step_00000004")
    rows = train(stopped)
    assert [rows[step]["loss"] for step in range(1, 5)] == [json.loads(x)["loss"] for x in lines]
    assert [rows[step]["restart"] for step in range(1, 5)] == [0, 0, 1, 1]


def test_boxes_alone_train_without_a_mask_term(train, tmp_path):
    rows = train(
        tmp_path / "boxes",
        "steps=1",
        "data.segmentation.batch_size=0",
        "losses.assistance.is_on=false",
        "parallel.checkpoint_activations=true",
    )
    assert not any("mask" in key for key in rows[1])
    assert rows[1]["detection/label"] > 0
