import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.finetune import main
from pipelines.finetuning.recipe import finetuning, protocol_settings
from pipelines.finetuning.start import Start, find_start
from pipelines.finetuning.tasks import task_named
from pipelines.recipes import RECIPES
from xdecoder.config import tiny
from xdecoder.openseed.config import BoxLossConfig, small

REPOSITORY = Path(__file__).resolve().parents[2]


def _finetune(folder, *arguments):
    command = [sys.executable, "-m", "pipelines.finetune", *arguments]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_list_describes_every_task(capsys):
    assert main(["--task", "list"]) == 0
    text = capsys.readouterr().out
    assert "refcocog-google" in text
    assert "data: vqav2; 10 epochs, 256 images in a step at 640x640; metric: vqa_accuracy" in text


def test_missing_data_are_told_before_anything_is_loaded(capsys):
    assert main(["--task", "refcoco", "--init-from", "nowhere"]) == 3
    assert "needs the data set; name its folder with --root DIR" in capsys.readouterr().err


def test_published_weights_get_the_papers_schedule_and_runs_keep_their_sizes(tiny_run):
    ours = find_start(str(tiny_run))
    converted = Start(folder=tiny_run, model=ours.model)
    task = task_named("coco-captions")
    paper = finetuning(task, converted)
    assert paper.data.image_text.size_hw == (480, 480)
    assert paper.data.image_text.batch_size == 256
    assert paper.data.segmentation.batch_size == 0
    assert (paper.optimizer.learning_rate, paper.optimizer.backbone_multiplier) == (2e-5, 0.1)
    assert paper.losses.retrieval.weight == 0.0 < paper.losses.captioning.weight
    own = finetuning(task_named("refcoco"), ours)
    assert own.data.segmentation.size_hw == ours.run.data.segmentation.size_hw
    assert own.data.image_text.batch_size == 0
    assert own.optimizer == ours.run.optimizer
    assert own.schedule.milestones == (21 / 24, 23 / 24)


def test_one_command_packs_scores_trains_and_scores_again(scenes_root, tiny_run, tmp_path):
    arguments = ("--task", "refcoco", "--set", f"data.root={scenes_root}", "--init-from")
    done = _finetune(tmp_path, *arguments, str(tiny_run), "--smoke", "--set", "lora.rank=2")
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "finetune-refcoco"
    results = json.loads((run / "eval" / "results.json").read_text())
    assert set(results) == {"refcoco-before", "refcoco"}
    assert all("refer_ciou" in each and "protocols" in each for each in results.values())
    assert len(list((tmp_path / "shards").glob("refcoco-*/manifest.json"))) == 1
    assert "refer_ciou" in done.stdout
    asked = json.loads((run / "config.json").read_text())
    assert asked["task"] == "refcoco"


def test_questions_are_answered_from_a_list(vqa_root, tiny_run, tmp_path):
    arguments = ("--task", "vqav2", "--root", str(vqa_root), "--init-from", str(tiny_run))
    done = _finetune(tmp_path, *arguments, "--smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "finetune-vqav2"
    results = json.loads((folder / "eval" / "results.json").read_text())
    assert set(results) == {"vqav2"}
    assert 0 <= results["vqav2"]["vqa_accuracy"] <= 100
    answers = json.loads((folder / "eval/vqav2/predictions/answers.json").read_text())
    assert {each["answer"] for each in answers} <= {"yes", "2"}


def test_a_run_is_kept_apart_from_how_it_was_asked_for(tiny_run):
    start = find_start(str(tiny_run))
    named = finetuning(task_named("custom"), replace(start, run=None))
    assert named.name == "finetune-custom"
    assert named.init_from == str(start.folder)


@pytest.mark.parametrize("name", ["coco-retrieval", "flickr30k-retrieval"])
def test_retrieval_has_no_use_for_captions(tiny_run, name):
    config = finetuning(task_named(name), find_start(str(tiny_run)))
    assert config.losses.captioning.weight == 0.0 < config.losses.retrieval.weight


def test_an_openseed_learns_segments_with_its_own_losses_and_threshold(tmp_path):
    start = Start(folder=tmp_path, model=small())
    task = task_named("coco-panoptic")
    config = finetuning(task, start)
    assert config.model == small()
    assert isinstance(config.losses, BoxLossConfig)
    sizes = {name: part.batch_size for name, part in config.data.parts().items()}
    assert sizes == {"segmentation": 32, "detection": 0, "image_text": 0}
    settings = protocol_settings(task, start)
    assert settings == {"shorter_px": 800, "longest_px": 1333}
    assert protocol_settings(task, replace(start, model=tiny()))["object_threshold"] == 0.8
    own = replace(start, run=RECIPES["openseed_scenes"]())
    assert protocol_settings(task, own) == {}
    losses = replace(own.run.losses, giou=1.0)
    again = finetuning(task, replace(own, run=replace(own.run, losses=losses)))
    assert again.losses == losses
    assert again.data.detection.batch_size == 0 < own.run.data.detection.batch_size


@pytest.mark.parametrize("name", ["refcoco", "coco-captions", "vqav2"])
def test_an_openseed_learns_nothing_but_segments(tmp_path, name):
    start = Start(folder=tmp_path, model=small())
    with pytest.raises(ConfigError, match=rf"--task {name} needs an X-Decoder; .* an OpenSeeD"):
        finetuning(task_named(name), start)
