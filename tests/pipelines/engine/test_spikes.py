"""Jumps of a loss."""

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.engine.checkpoint_files import read_tensors
from pipelines.engine.spikes import RollingZScore, SpikeWatch
from pipelines.tracking.jsonl import read_events


def noise(count: int, mean: float, seed: int) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(mean, 0.1) for _ in range(count)]


def scores(values: list[float], *, window: int = 50) -> list[float]:
    series = RollingZScore(window=window)
    return [series.see(value, sigmas=6) for value in values]


def test_only_the_jump_of_a_noisy_series_stands_out() -> None:
    found = scores([*noise(80, 3.0, 1), 5.0, *noise(80, 3.0, 2)])
    assert [place for place, score in enumerate(found) if score > 6] == [80]
    assert found[80] == pytest.approx(20, rel=0.3)


def test_a_falling_series_and_a_new_level_are_no_endless_spikes() -> None:
    falling = [10 * math.exp(-step / 30) for step in range(200)]
    assert max(scores(falling)) < 6
    level = scores([*noise(80, 3.0, 1), *noise(80, 6.0, 2)])
    assert level[80] > 6
    assert max(level[100:]) < 6


def test_a_constant_series_forgives_the_last_bits() -> None:
    assert max(scores([2.0] * 40 + [2.001])) < 6
    assert scores([2.0] * 40 + [2.1])[-1] > 6


def test_a_few_values_and_values_that_are_not_finite_say_nothing() -> None:
    assert scores([1.0, 1.0, 90.0]) == [0.0, 0.0, 0.0]
    assert scores([*noise(40, 3.0, 1), math.nan, math.inf])[-2:] == [0.0, 0.0]


def watch(action: Any, told: list[Any], recent: list[float] | None = None) -> SpikeWatch:
    def tell(kind: str, facts: Mapping[str, Any]) -> None:
        told.append((kind, facts))

    return SpikeWatch(
        action=action,
        sigmas=6.0,
        window=50,
        recent=recent or (),
        # the other rank
        gather=lambda value: [value, 3.0],
        tell=tell,
    )


def test_log_tells_of_tasks_and_norms_and_skips_nothing() -> None:
    told: list[Any] = []
    spikes = watch("log", told)
    for step, value in enumerate([*noise(40, 3.0, 1), 9.0]):
        row = {"step": step, "loss": 3.0, "loss/seg": value, "gradient_norm": value, "seg/a": value}
        spikes.see_row(row, is_skipped=False)
        assert not spikes.must_skip(torch.tensor(value))
    ((kind, facts),) = told
    assert (kind, facts["step"], facts["is_skipped"]) == ("spike", 40, False)
    assert list(facts["series"]) == ["loss/seg", "gradient_norm"]
    assert spikes.recent == []


def test_off_says_nothing() -> None:
    told: list[Any] = []
    spikes = watch("off", told)
    for value in [*noise(40, 3.0, 1), 9.0]:
        spikes.see_row({"step": 1, "loss": value}, is_skipped=False)
    assert told == []


def test_skip_judges_the_mean_over_ranks_and_goes_on_after_a_restart() -> None:
    whole, values = watch("skip", []), [*noise(40, 3.0, 1), 9.0, 3.0]
    expected = [whole.must_skip(torch.tensor(value)) for value in values]
    assert [place for place, found in enumerate(expected) if found] == [40]
    first = watch("skip", [])
    for value in values[:40]:
        first.must_skip(torch.tensor(value))
    resumed = watch("skip", [], first.recent)
    assert [resumed.must_skip(torch.tensor(value)) for value in values[40:]] == [True, False]


def test_a_run_leaves_out_the_step_of_a_spike(
    tmp_path: Path, train_tiny: Callable[..., int], tiny: Any
) -> None:
    def loud(*arguments: Any, **options: Any) -> Any:
        for (batch,), state in tiny.tiny_stream(*arguments, **options):
            if state["index"] == 22:
                batch.images.mul_(1e4)
                batch.images[:, :, :, ::2].neg_()
            yield (batch,), state

    def losses(config: Any, device: torch.device) -> Any:
        made = tiny.tiny_losses(config, device)
        made.model.norm = torch.nn.Identity()
        return made

    code = train_tiny(
        tmp_path,
        *("steps=24", "watch.spikes=skip", "watch.spike_window=20"),
        *("checkpoint.every_steps=1", "checkpoint.keep_last=30"),
        make_stream=loud,
        make_losses=losses,
    )
    assert code == 0
    events = [event for event in read_events(tmp_path) if event["event"] != "checkpoint"]
    assert [event["step"] for event in events if event.get("is_skipped")] == [22]
    assert not [event for event in events if event["event"] == "skipped_step"]
    before, after = (
        read_tensors(tmp_path / "checkpoints" / f"step_{step:08d}" / "model.safetensors")
        for step in (21, 22)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
