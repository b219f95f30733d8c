"""Fine-tuning on phrases makes masks of phrases better than what pretraining left."""

import json
from pathlib import Path

import pytest

from tests.learning.test_photographs import run

# short enough for minutes; the weights know what a phrase is, and confuse many
PRETRAINING_STEPS, FINETUNING_STEPS = 300, 300
# of the overall IoU, in points
MARGIN = 3.0


@pytest.mark.slow
def test_phrases_get_better_masks_than_before(tmp_path: Path) -> None:
    scenes, shards = tmp_path / "scenes", tmp_path / "shards"
    run("pipelines.prepare", "scenes", "--out", scenes, "--num-train", 800, "--num-val", 100,
        "--num-zeroshot", 5)  # fmt: skip
    run("pipelines.prepare", "coco", "--root", scenes, "--split", "train", "--out", shards)
    first, second = tmp_path / "first", tmp_path / "second"
    run("pipelines.pretrain", "--recipe", "scenes", "--shards", shards, "--output-dir", first,
        "--set", f"steps={PRETRAINING_STEPS}", "--set", "tracking.panels_every=0")  # fmt: skip
    run("pipelines.finetune", "--task", "refcoco", "--set", f"data.root={scenes}", "--init-from",
        first, "--output-dir", second, "--shards", tmp_path / "packed",
        "--set", f"steps={FINETUNING_STEPS}")  # fmt: skip
    results = json.loads((second / "eval" / "results.json").read_text())
    before, after = results["refcoco-before"], results["refcoco"]
    assert after["refer_ciou"] >= before["refer_ciou"] + MARGIN
    # it is the phrase that is understood, not the likeliest object
    assert after["refer_ciou"] >= after["refer_ciou_shuffled"] + MARGIN
