"""Whole runs of the tiny model in this process."""

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pipelines.engine.checkpoint_files import read_tensors
from pipelines.engine.signals import StopFlag
from pipelines.errors import CheckpointError, ConfigError, ExitCode, NonFiniteLossError
from pipelines.tracking.jsonl import read_events

Curve = Callable[[Path], dict[int, dict[str, float]]]


class StopAfter:
    """A stream that sends a signal to this process while a step is computed."""

    def __init__(self, tiny: ModuleType, step: int) -> None:
        self.tiny, self.step = tiny, step

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        for number, item in enumerate(self.tiny.tiny_stream(*arguments, **options), 1):
            if number == self.step:
                os.kill(os.getpid(), signal.SIGUSR2)
            yield item


@pytest.fixture
def stop() -> Any:
    before = {number: signal.getsignal(number) for number in (10, 12, 15, 2)}
    flag = StopFlag().install()
    yield flag
    flag.forced_exit.give_up()
    for number, handler in before.items():
        signal.signal(number, handler)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    latest = folder / "checkpoints" / "latest"
    tensors = {}
    for name in ("model", "ema", "optimizer"):
        for key, value in read_tensors(latest / f"{name}.safetensors").items():
            tensors[f"{name}:{key}"] = value
    return tensors


def assert_same_run(first: Path, second: Path, curve: Curve) -> None:
    assert curve(first) == curve(second)
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_run_trains_and_leaves_its_records(
    tmp_path: Path, train_tiny: Callable[..., int], curve: Curve
) -> None:
    assert train_tiny(tmp_path) == ExitCode.FINISHED
    rows = curve(tmp_path)
    assert list(rows) == list(range(1, 13))
    assert rows[12]["loss"] < rows[1]["loss"]
    assert {path.name for path in tmp_path.iterdir()} >= {
        *("config.json", "config.resolved.json", "environment.json", "run_id", "metrics.jsonl"),
        *("events.jsonl", "logs", "checkpoints"),
    }
    kinds = [event["event"] for event in read_events(tmp_path)]
    assert kinds == ["start", *["checkpoint"] * 4, "finished"]
    assert json.loads((tmp_path / "environment.json").read_text())["num_threads"] == 1


def test_stopped_run_continues_exactly(
    tmp_path: Path,
    train_tiny: Callable[..., int],
    tiny: ModuleType,
    curve: Curve,
    stop: StopFlag,
) -> None:
    train_tiny(tmp_path / "whole")
    code = train_tiny(tmp_path / "cut", stop=stop, make_stream=StopAfter(tiny, 5))
    assert code == ExitCode.REQUEUE
    assert list(curve(tmp_path / "cut")) == [1, 2, 3, 4, 5]
    assert train_tiny(tmp_path / "cut") == ExitCode.FINISHED
    assert_same_run(tmp_path / "whole", tmp_path / "cut", curve)
    events = {event["event"]: event for event in read_events(tmp_path / "cut")}
    assert events["stopped"]["signal"] == "SIGUSR2"
    assert events["resume"]["step"] == 5


def test_rows_beyond_the_checkpoint_are_superseded(
    tmp_path: Path, train_tiny: Callable[..., int], curve: Curve
) -> None:
    train_tiny(tmp_path)
    whole = curve(tmp_path)
    newest = tmp_path / "checkpoints" / "step_00000012"
    (newest / "state.json").write_text("{}")
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 13, "lo')
    train_tiny(tmp_path)
    assert curve(tmp_path) == whole
    superseded = (tmp_path / "metrics.superseded.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in superseded] == [10, 11, 12]
    restarts = [json.loads(line)["restart"] for line in (tmp_path / "metrics.jsonl").open()]
    assert restarts == [0] * 9 + [1] * 3
    (complaint,) = [e for e in read_events(tmp_path) if e["event"] == "damaged_checkpoint"]
    assert "step_00000012" in complaint["message"]


def test_changed_data_state_changes_the_curve(
    tmp_path: Path, train_tiny: Callable[..., int], tiny: ModuleType, curve: Curve, stop: StopFlag
) -> None:
    """The comparison above would notice a data position that was not restored."""
    train_tiny(tmp_path / "whole")
    train_tiny(tmp_path / "cut", stop=stop, make_stream=StopAfter(tiny, 5))

    def forgetful(*arguments: Any, state: object = None, **options: Any) -> Any:
        return tiny.tiny_stream(*arguments, **options)

    train_tiny(tmp_path / "cut", make_stream=forgetful)
    assert curve(tmp_path / "whole")[6] != curve(tmp_path / "cut")[6]


def test_non_finite_loss_leaves_no_poisoned_checkpoint(
    tmp_path: Path, train_tiny: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_POISON_STEP", "5")
    with pytest.raises(NonFiniteLossError, match=r"step 6: .*image_text.*shard5/0-0"):
        train_tiny(tmp_path, "tracking.log_every=50", "watch.max_skipped=0")
    assert (tmp_path / "checkpoints" / "latest").resolve().name == "step_00000003"
    assert read_events(tmp_path)[-1]["event"] == "failed"
    log = (tmp_path / "logs" / "start000.rank00000.log").read_text()
    assert "Traceback" in log
    assert "NonFiniteLossError: step 6" in log


def test_folder_of_another_run_is_refused(tmp_path: Path, train_tiny: Callable[..., int]) -> None:
    train_tiny(tmp_path, "steps=3", "schedule.warmup_steps=1")
    with pytest.raises(ConfigError) as caught:
        train_tiny(tmp_path, "steps=3", "schedule.warmup_steps=1", "optimizer.clip_norm=0.25")
    assert "optimizer.clip_norm: 0.5 -> 0.25" in str(caught.value)
    assert "--resume" in str(caught.value)


def test_what_changes_no_number_may_change(tmp_path: Path, train_tiny: Callable[..., int]) -> None:
    train_tiny(tmp_path, "steps=4")
    assert train_tiny(tmp_path, "steps=4", "tracking.log_every=3") == ExitCode.FINISHED


def test_resume_from_a_path_accepts_another_configuration(
    tmp_path: Path, train_tiny: Callable[..., int], curve: Curve
) -> None:
    train_tiny(tmp_path, "steps=4")
    assert train_tiny(tmp_path, "steps=6", resume=str(tmp_path)) == ExitCode.FINISHED
    assert list(curve(tmp_path)) == [1, 2, 3, 4, 5, 6]


def test_resume_never_refuses_a_folder_with_a_checkpoint(
    tmp_path: Path, train_tiny: Callable[..., int]
) -> None:
    train_tiny(tmp_path, "steps=4", resume="never")
    with pytest.raises(CheckpointError, match="--resume never: the run folder must have no"):
        train_tiny(tmp_path, "steps=4", resume="never")


def test_run_id_survives_restarts(tmp_path: Path, train_tiny: Callable[..., int]) -> None:
    train_tiny(tmp_path, "steps=4")
    first = (tmp_path / "run_id").read_text()
    train_tiny(tmp_path, "steps=4")
    assert (tmp_path / "run_id").read_text() == first


def test_panels_do_not_disturb_the_run(
    tmp_path: Path, train_tiny: Callable[..., int], curve: Curve
) -> None:
    seen = []

    def draw(step: int, model: torch.nn.Module, batches: Sequence[Any]) -> Mapping[str, Path]:
        torch.rand(3)
        assert not model.training
        seen.append((step, model.head.weight.clone(), batches[0].keys))
        return {}

    train_tiny(tmp_path / "plain")
    train_tiny(tmp_path / "drawn", "tracking.panels_every=4", draw_panels=draw)
    assert [step for step, *_ in seen] == [4, 8, 12]
    assert_same_run(tmp_path / "plain", tmp_path / "drawn", curve)
    # drawn with the averaged weights
    average = read_tensors(tmp_path / "drawn" / "checkpoints" / "latest" / "ema.safetensors")
    assert torch.equal(seen[-1][1], average["head.weight"])


def test_bfloat16_computes_in_low_precision_and_stores_in_float32(
    tmp_path: Path, train_tiny: Callable[..., int], curve: Curve
) -> None:
    train_tiny(tmp_path / "full")
    train_tiny(tmp_path / "half", "parallel.precision=bf16")
    full, half = curve(tmp_path / "full"), curve(tmp_path / "half")
    assert half[1]["loss"] != full[1]["loss"]
    # bfloat16 has 8 bits of mantissa; a few roundings in a row
    assert half[1]["loss"] == pytest.approx(full[1]["loss"], rel=2**-5)
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "half").values())
