"""Runs that go back to their newest checkpoint where a loss jumps."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.engine.checkpoint_files import read_tensors
from pipelines.engine.distributed import Group, ProcessPlace
from pipelines.engine.rollback import Rollbacks
from pipelines.engine.spikes import SpikeWatch
from pipelines.errors import DataError, DivergenceError, ExitCode
from pipelines.tracking.jsonl import read_events, read_metrics

Train = Callable[..., int]
Curve = Callable[[Path], dict[int, dict[str, float]]]
# checkpoints at 18 and 20, a jump in step 22, the end at 26
LOUD_INDEX, RETURN_STEP, JUMP_STEP = 21, 20, 22
SETTINGS = (
    *("steps=26", "watch.spikes=rollback", "watch.spike_window=20", "tracking.log_every=5"),
    *("checkpoint.every_steps=2", "checkpoint.keep_last=20"),
)


def final(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "checkpoints" / "step_00000026" / f"{name}.safetensors")


def state_of(folder: Path, step: int = 26) -> dict[str, Any]:
    path = folder / "checkpoints" / f"step_{step:08d}" / "state.json"
    return json.loads(path.read_text())


def assert_same_end(first: Path, second: Path) -> None:
    for name in ("model", "ema", "optimizer", "generators_00000"):
        expected, found = final(first, name), final(second, name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name


def rollbacks_of(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["event"] == "rollback"]


@pytest.fixture
def _loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_LOUD_STEPS", str(LOUD_INDEX))


@pytest.mark.usefixtures("_loud")
def test_the_run_goes_on_from_the_checkpoint_with_the_data_after_the_jump(
    tmp_path: Path, train_tiny: Train, tiny: Any, curve: Curve
) -> None:
    assert train_tiny(tmp_path / "back", *SETTINGS) == 0

    def after_the_jump(*arguments: Any, **options: Any) -> Iterator[Any]:
        return tiny.tiny_stream(*arguments, **{**options, "state": {"index": LOUD_INDEX + 1}})

    # a run that was never there, from the same checkpoint
    source = tmp_path / "back" / "checkpoints" / f"step_{RETURN_STEP:08d}"
    train_tiny(tmp_path / "fresh", *SETTINGS, resume=str(source), make_stream=after_the_jump)
    assert_same_end(tmp_path / "back", tmp_path / "fresh")
    # the losses of undone steps say nothing about the next jump
    recent = [state_of(tmp_path / name)["data"]["recent_losses"] for name in ("back", "fresh")]
    assert recent[0] == recent[1]
    redone = curve(tmp_path / "fresh")
    assert redone.items() <= curve(tmp_path / "back").items()
    assert list(redone) == list(range(RETURN_STEP + 1, 27))


@pytest.mark.usefixtures("_loud")
def test_events_rows_and_state_tell_of_it(tmp_path: Path, train_tiny: Train) -> None:
    train_tiny(tmp_path, *SETTINGS)
    (event,) = rollbacks_of(tmp_path)
    assert (event["step"], event["to_step"], event["num_rollbacks"]) == (JUMP_STEP, RETURN_STEP, 1)
    assert event["sigmas"] > 6
    assert event["loss"] > 100
    assert event["keys"] == {
        "21": [["shard20/0-0", "shard20/0-1"]],
        "22": [["shard21/0-0", "shard21/0-1"]],
    }
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 27))
    superseded = (tmp_path / "metrics.superseded.jsonl").read_text().splitlines()
    undone = [json.loads(line) for line in superseded]
    assert [(row["step"], row.get("left_out")) for row in undone] == [(21, None), (22, 1)]
    assert state_of(tmp_path)["data"]["index"] == 28
    assert state_of(tmp_path)["data"]["num_rollbacks"] == 1
    assert "num_rollbacks" not in state_of(tmp_path, RETURN_STEP)["data"]
    assert not [event for event in read_events(tmp_path) if event["event"] == "skipped_step"]


@pytest.mark.usefixtures("_loud")
# before the next checkpoint, where the jump is met again; and after it
@pytest.mark.parametrize("killed_at", [22, 25])
def test_a_run_that_dies_after_it_went_back_ends_the_same(
    tmp_path: Path, train_tiny: Train, tiny: Any, curve: Curve, killed_at: int
) -> None:
    def dying(*arguments: Any, **options: Any) -> Iterator[Any]:
        for item in tiny.tiny_stream(*arguments, **options):
            if item[1]["index"] == killed_at + 1:
                raise DataError("killed")
            yield item

    train_tiny(tmp_path / "whole", *SETTINGS)
    with pytest.raises(DataError, match="killed"):
        train_tiny(tmp_path / "cut", *SETTINGS, make_stream=dying)
    assert len(rollbacks_of(tmp_path / "cut")) == 1
    assert train_tiny(tmp_path / "cut", *SETTINGS) == 0
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    assert state_of(tmp_path / "whole")["data"] == state_of(tmp_path / "cut")["data"]


def test_one_jump_too_many_ends_the_run_also_over_a_restart(
    tmp_path: Path, train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_LOUD_STEPS", "21,26")
    with pytest.raises(DivergenceError, match=r"step 25: .*max_rollbacks=1 times; .* number 2, "):
        train_tiny(tmp_path, *SETTINGS, "watch.max_rollbacks=1")
    assert DivergenceError.exit_code == ExitCode.NON_FINITE == 4
    (event,) = (each for each in read_events(tmp_path) if each["event"] == "failed")
    assert "checkpoints/step_00000024. Look at" in event["error"]
    # the count comes from the checkpoint, and a higher limit goes on from it
    with pytest.raises(DivergenceError, match="this is number 2"):
        train_tiny(tmp_path, *SETTINGS, "watch.max_rollbacks=1")
    assert train_tiny(tmp_path, *SETTINGS, "watch.max_rollbacks=2") == 0
    assert rollbacks_of(tmp_path)[-1]["to_step"] == 24


@pytest.mark.usefixtures("_loud")
def test_before_the_first_checkpoint_the_step_is_left_out(
    tmp_path: Path, train_tiny: Train
) -> None:
    settings = ("checkpoint.every_steps=100", "checkpoint.keep_last=1")
    train_tiny(tmp_path / "back", *SETTINGS, *settings)
    train_tiny(tmp_path / "skip", *SETTINGS, *settings, "watch.spikes=skip")
    assert not rollbacks_of(tmp_path / "back")
    assert_same_end(tmp_path / "back", tmp_path / "skip")
    rows = {row["step"]: row for row in read_metrics(tmp_path / "back")}
    assert [step for step, row in rows.items() if "left_out" in row] == [JUMP_STEP]


@pytest.mark.usefixtures("_loud")
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, train_tiny: Train, tiny: Any
) -> None:
    def damaging(*arguments: Any, **options: Any) -> Iterator[Any]:
        for item in tiny.tiny_stream(*arguments, **options):
            newest = tmp_path / "checkpoints" / f"step_{RETURN_STEP:08d}"
            if item[1]["index"] == LOUD_INDEX + 1:
                (newest / "COMPLETE").unlink()
            yield item

    # complete when the next step begins, so that there is something to damage
    train_tiny(tmp_path, *SETTINGS, "checkpoint.asynchronous=false", make_stream=damaging)
    (event,) = rollbacks_of(tmp_path)
    assert event["to_step"] == RETURN_STEP - 2
    assert list(event["keys"]) == ["19", "20", "21", "22"]
    (damaged,) = (each for each in read_events(tmp_path) if each["event"] == "damaged_checkpoint")
    assert f"step_{RETURN_STEP:08d} must have COMPLETE" in damaged["message"]


def test_keys_are_kept_as_long_as_their_steps_can_be_undone() -> None:
    rollbacks = Rollbacks(max_total=1, step=4)
    for step in range(5, 13):
        rollbacks.saw_step(step, [f"key{step}"])
        if step % 3 == 0:
            rollbacks.saw_save(step)
    # checkpoints at 9 and 12; the newer one may turn out to be damaged
    assert list(rollbacks._keys) == [10, 11, 12]


def test_the_place_in_the_data_is_the_one_thing_that_stays(tmp_path: Path) -> None:
    def restore(state: Any, folder: Path) -> None:
        state.step, state.data = 20, {"index": 20, "recent_losses": [1.5, 2.5]}

    spikes = SpikeWatch(action="rollback", sigmas=6.0, window=9, recent=[7.0], gather=lambda x: [x])
    state: Any = SimpleNamespace(step=22, data={"index": 22})
    Rollbacks(max_total=1).go_back(
        state,
        tmp_path,
        checkpointer=SimpleNamespace(restore=restore),
        spikes=spikes,
        group=Group(ProcessPlace(), is_cuda=False),
    )
    assert (state.step, state.data) == (20, {"index": 22})
    assert spikes.recent == [1.5, 2.5]


@pytest.mark.dist
def test_two_ranks_go_back_together_under_every_backend(tmp_path: Path) -> None:
    names = {"torch": ("parallel.backend=torch",)}
    if importlib.util.find_spec("deepspeed"):
        zero = ("parallel.backend=deepspeed", "parallel.self_check=false")
        for stage in range(4):
            names[f"zero{stage}"] = (*zero, f"parallel.zero_stage={stage}")
        names["offload"] = (*names["zero2"], "parallel.offload=optimizer")
    common = (*SETTINGS, "parallel.keep_whole_below=0", "checkpoint.every_steps=10")
    cases = [
        {"folder": str(tmp_path / name), "assignments": (*common, *each)}
        for name, each in names.items()
    ]
    for name in sorted({"torch", "zero2", "zero3"} & names.keys())[-2:]:
        again = {**cases[list(names).index(name)], "folder": str(tmp_path / f"{name}_cut")}
        cases += [{**again, "trap": f"killed at {LOUD_INDEX + 2}"}, again]
    here = Path(__file__).parent
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(here / "zero_run.py"), json.dumps(cases)),
        ],
        env={
            **{name: value for name, value in os.environ.items() if name != "RANK"},
            "PYTHONPATH": f"{here.parents[2]}:{here}",
            "OMP_NUM_THREADS": "1",
            "TINY_LOUD_STEPS": str(LOUD_INDEX),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    expected = read_metrics(tmp_path / "torch")
    for name in names:
        (event,) = rollbacks_of(tmp_path / name)
        assert (event["step"], event["to_step"]) == (JUMP_STEP, RETURN_STEP), name
        assert event["keys"]["22"][1] == ["shard21/1-0", "shard21/1-1"]
        found = read_metrics(tmp_path / name)
        assert [row["step"] for row in found] == list(range(1, 27))
        for row, other in zip(expected, found, strict=True):
            # what rounding grows to in a few steps of AdamW
            assert other["loss"] == pytest.approx(row["loss"], rel=1e-6), (name, row["step"])
    for cut in tmp_path.glob("*_cut"):
        assert (cut / "error.rank0.txt").read_text() == "killed"
        assert_same_end(cut.with_name(cut.name.removesuffix("_cut")), cut)
