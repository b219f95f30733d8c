"""Steps that every rank leaves out."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.engine.checkpoint_files import read_tensors
from pipelines.engine.skipped import SkippedSteps, poisoned, poisoned_unless_finite
from pipelines.errors import NonFiniteLossError
from pipelines.tracking.jsonl import read_events, read_metrics
from xdecoder.losses.matching import NonFiniteCostError

POISONED_INDEX = 5
EVERY_STEP = ("checkpoint.every_steps=1", "checkpoint.keep_last=20", "tracking.log_every=3")


def tensors(folder: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "checkpoints" / f"step_{step:08d}" / f"{name}.safetensors")


def assert_step_was_left_out(folder: Path) -> None:
    for name in ("model", "optimizer"):
        before, after, later = (tensors(folder, step, name) for step in (5, 6, 7))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert not all(torch.equal(after[key], later[key]) for key in before)


@pytest.mark.parametrize("value", [1.0, -3.7e20, 0.0])
def test_finite_losses_keep_every_bit_of_value_and_gradient(value: float) -> None:
    loss = torch.tensor(value, requires_grad=True)
    guarded = poisoned_unless_finite(loss)
    guarded.backward()
    assert guarded.item() == loss.item()
    assert loss.grad == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_other_losses_make_every_gradient_nan(value: float) -> None:
    weights = torch.tensor([2.0, 5.0], requires_grad=True)
    # the gradient of the addition would be finite
    poisoned_unless_finite(weights.sum() + value).backward()
    assert weights.grad is not None
    assert weights.grad.isnan().all()


def test_a_poisoned_loss_makes_every_gradient_nan() -> None:
    weights = torch.tensor([2.0, 5.0], requires_grad=True)
    poisoned(weights.sum()).backward()
    assert weights.grad is not None
    assert weights.grad.isnan().all()


def test_a_poisoned_step_changes_no_weight_and_tells_its_keys(
    tmp_path: Path, train_tiny: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_POISON_STEP", str(POISONED_INDEX))
    assert train_tiny(tmp_path, *EVERY_STEP) == 0
    assert_step_was_left_out(tmp_path)
    (event,) = (each for each in read_events(tmp_path) if each["event"] == "skipped_step")
    assert (event["step"], event["num_skipped"]) == (6, 1)
    assert event["keys"] == [["shard5/0-0", "shard5/0-1"]]
    assert event["tasks"] == ["image_text"]
    assert event["terms"]["image_text/match/0"] == ["nan"]
    rows = {row["step"]: row for row in read_metrics(tmp_path)}
    assert rows[6]["left_out"] == 1
    assert not [name for name in rows[6] if "loss" in name or "/" in name]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert "left_out" not in rows[7]


def test_costs_that_cannot_be_matched_leave_the_step_out(
    tmp_path: Path, train_tiny: Callable[..., int], tiny: Any
) -> None:
    class Unmatched(tiny.TinyLosses):
        def forward(self, batches: Any, draws: Any, counts: Any = None) -> Any:
            terms = super().forward(batches, draws, counts)
            if batches[0].keys[0].startswith("shard5/"):
                raise NonFiniteCostError("match: costs must be finite.", terms)
            return terms

    code = train_tiny(tmp_path, *EVERY_STEP, make_losses=lambda *_: Unmatched().train())
    assert code == 0
    assert_step_was_left_out(tmp_path)
    (event,) = (each for each in read_events(tmp_path) if each["event"] == "skipped_step")
    assert event["keys"] == [["shard5/0-0", "shard5/0-1"]]
    # the other terms had a value
    assert event["terms"] == {
        name: ["nan"] for name in ("gradient_norm", "image_text/match/0", "loss")
    }
    assert event["complaint"] == "match: costs must be finite."


def assert_rank_1_could_not_match(folder: Path) -> None:
    assert not list(folder.glob("error.*")), folder
    events = [each for each in read_events(folder) if each["event"] == "skipped_step"]
    assert [event["step"] for event in events] == [6, 8]
    assert [event["complaint"] for event in events] == ["", "match: costs must be finite."]
    assert events[1]["keys"][0] == ["shard7/0-0", "shard7/0-1"]
    before, after = (tensors(folder, step, "model") for step in (7, 8))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.dist
def test_two_ranks_leave_out_the_step_of_one_under_every_backend(tmp_path: Path) -> None:
    settings = (*EVERY_STEP, "parallel.self_check=false", "parallel.keep_whole_below=0", "steps=8")
    extra = {"torch": ("parallel.backend=torch",)}
    if importlib.util.find_spec("deepspeed"):
        zero = "parallel.backend=deepspeed"
        extra |= {f"zero{stage}": (zero, f"parallel.zero_stage={stage}") for stage in range(4)}
        extra["offload"] = (*extra["zero2"], "parallel.offload=optimizer")
    cases = [
        {"folder": str(tmp_path / name), "assignments": (*settings, *each)}
        for name, each in extra.items()
    ]
    # rank 1 cannot match what rank 0 can
    cases += [
        {**case, "folder": f"{case['folder']}_unmatched", "trap": f"unmatched {POISONED_INDEX + 2}"}
        for case in cases
    ]
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(here / "zero_run.py"), json.dumps(cases)],
        env={
            **{name: value for name, value in os.environ.items() if name != "RANK"},
            "PYTHONPATH": f"{here.parents[2]}:{here}",
            "OMP_NUM_THREADS": "1",
            "TINY_POISON_STEP": str(POISONED_INDEX),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name in extra:
        folder = tmp_path / name
        assert not list(folder.glob("error.*")), name
        assert_step_was_left_out(folder)
        (event,) = (each for each in read_events(folder) if each["event"] == "skipped_step")
        assert event["keys"][1] == ["shard5/1-0", "shard5/1-1"]
        # rank 0 had a good loss, and left the step out as well
        good, bad = event["terms"]["image_text/match/0"]
        assert (float(good) > 0, bad) == (True, "nan")
        assert_rank_1_could_not_match(tmp_path / f"{name}_unmatched")


def test_a_limit_over_restarts_and_one_in_a_row_end_the_run() -> None:
    skipped = SkippedSteps(max_total=4, max_in_a_row=2, total=1)
    bad: dict[str, Any] = {"keys": [["a"], ["b"]], "terms": {"seg/dice/0": [1.0, torch.nan]}}
    skipped.saw_bad_step(1, **bad)
    skipped.saw_bad_step(2, **bad)
    skipped.saw_good_step()
    skipped.saw_bad_step(4, **bad)
    skipped.saw_good_step()
    with pytest.raises(NonFiniteLossError, match=r"step 6: .*task seg .*a, b\. .*far: 5 steps, 1 "):
        skipped.saw_bad_step(6, **bad)
    skipped = SkippedSteps(max_total=9, max_in_a_row=1)
    skipped.saw_bad_step(1, **bad)
    with pytest.raises(NonFiniteLossError, match="2 of them in a row"):
        skipped.saw_bad_step(2, **bad)


def test_the_count_survives_a_restart(
    tmp_path: Path, train_tiny: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_POISON_STEP", "2")
    train_tiny(tmp_path, "steps=6", "schedule.warmup_steps=0")
    state = json.loads((tmp_path / "checkpoints" / "latest" / "state.json").read_text())
    assert "num_skipped" in json.dumps(state)
    monkeypatch.setenv("TINY_POISON_STEP", "7")
    with pytest.raises(NonFiniteLossError, match="Left out so far: 2 steps, 1 of them in a row"):
        train_tiny(tmp_path, "watch.max_skipped=1", "steps=9", resume=str(tmp_path))
