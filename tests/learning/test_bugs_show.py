"""A bug in a learning path shows in the metric of that path.

Each run trains the scenes recipe for a few hundred steps; metrics are compared with a run without
a bug. What no metric shows (leaking captions, inverted attention masks) has tests of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_STEPS = 300
pytestmark = pytest.mark.slow


def run(*words: object) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, check=True, env=environment, cwd=REPOSITORY)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    root, shards = folder / "scenes", folder / "shards"
    run("-m", "pipelines.prepare", "scenes", "--out", root, "--num-train", 2000,
        "--num-val", 100, "--num-zeroshot", 10)  # fmt: skip
    run("-m", "pipelines.prepare", "coco", "--root", root, "--split", "train", "--out", shards)
    return root, shards


def scores(bug: str, data: tuple[Path, Path], out: Path) -> dict[str, float]:
    root, shards = data
    script = Path(__file__).with_name("broken_training.py")
    run(script, bug, "--recipe", "scenes", "--shards", shards, "--output-dir", out,
        "--set", f"steps={NUM_STEPS}", "--set", "optimizer.ema_decay=0.99")  # fmt: skip
    stages = ("segmentation", "referring", "captioning", "retrieval")
    run("-m", "pipelines.evaluate", "--checkpoint", out, "--root", root, "--split", "val",
        "--stages", *stages, "--out", out)  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    keys = ("pq", "pq_things", "refer_ciou", "refer_ciou_shuffled", "retrieval_r1",
            "caption_token_accuracy", "caption_token_accuracy_shuffled")  # fmt: skip
    values = {key: report[key] for key in keys}
    print(bug, values)
    return values


def gain(values: dict[str, float], key: str) -> float:
    return values[key] - values[f"{key}_shuffled"]


@pytest.fixture(scope="module")
def healthy(data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return scores("nothing", data, tmp_path_factory.mktemp("healthy") / "run")


def test_exchanged_texts_take_away_whatever_text_gives(
    healthy: dict[str, float], data: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = scores("exchanged_texts", data, tmp_path / "run")
    assert broken["retrieval_r1"] < 5 < 20 < healthy["retrieval_r1"]
    # above the same with phrases of other objects, and with captions of other images
    assert gain(broken, "refer_ciou") < 5 < 20 < gain(healthy, "refer_ciou")
    words = "caption_token_accuracy"
    assert gain(broken, words) < 2 < 5 < gain(healthy, words)


def test_swapped_axes_take_away_masks(
    healthy: dict[str, float], data: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = scores("swapped_axes", data, tmp_path / "run")
    assert broken["pq"] < 0.4 * healthy["pq"]
    assert broken["refer_ciou"] < 0.5 * healthy["refer_ciou"]


def test_random_matching_takes_away_things(
    healthy: dict[str, float], data: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = scores("random_matching", data, tmp_path / "run")
    assert broken["pq_things"] < 0.2 * healthy["pq_things"]
