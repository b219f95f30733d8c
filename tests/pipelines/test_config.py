import json
from dataclasses import replace

import pytest

from pipelines.config import (
    CheckpointConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
    TrackingConfig,
    WatchConfig,
)
from pipelines.errors import ConfigError
from pipelines.overrides import from_json, override, to_json
from pipelines.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds_and_survives_json(name: str) -> None:
    config = RECIPES[name]()
    assert from_json(RunConfig, json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_how_to_run_it_and_what_to_expect(name: str) -> None:
    text = RECIPES[name].__doc__ or ""
    assert f"--recipe {name}" in text
    for word in ("Hardware:", "Time:", "Expected:"):
        assert word in text


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OptimizerConfig(learning_rate=0.0), "optimizer.learning_rate must be positive"),
        (lambda: OptimizerConfig(clip_norm=0.0), "A large number, for example 1e9, clips nothing"),
        (lambda: OptimizerConfig(ema_decay=1.0), r"ema_decay must be in \[0, 1\); got 1.0"),
        (lambda: ScheduleConfig(warmup_steps=-1), "schedule.warmup_steps must be >= 0; got -1"),
        (lambda: ScheduleConfig(milestones=(0.9, 0.8)), "rising shares of the run"),
        (lambda: ScheduleConfig(milestones=(90.0,)), "Divide steps by the length of the run"),
        (lambda: ParallelConfig(accumulation=0), "parallel.accumulation must be >= 1; got 0"),
        (lambda: ParallelConfig(num_threads=-1), "parallel.num_threads must be >= 0; got -1"),
        (lambda: ParallelConfig(keep_whole_below=-1), "keep_whole_below must be >= 0; got -1"),
        (lambda: ParallelConfig(initial_loss_scale=0.5), "must be >= 1; got 0.5 and 2000"),
        (lambda: ParallelConfig(offload="optimizer"), "zero_stage >= 1; got torch and 1"),
        (
            lambda: ParallelConfig(backend="deepspeed", zero_stage=2, offload="parameters"),
            "offload=parameters needs parallel.backend=deepspeed and parallel.zero_stage >= 3; got",
        ),
        (lambda: CheckpointConfig(keep_last=0), "checkpoint.keep_last must be >= 1"),
        (
            lambda: CheckpointConfig(keep_every_steps=1500),
            "multiple of checkpoint.every_steps=1000",
        ),
        (
            lambda: WatchConfig(max_skipped=-1),
            "max_skipped_in_a_row must be >= 0; got -1 and 3. 0 ends the run at once",
        ),
        (lambda: WatchConfig(max_rollbacks=-1), "max_rollbacks must be >= 0; got -1. 0 ends the"),
        (lambda: WatchConfig(spike_window=1), "spike_window >= 2; got 6 and 1. watch.spikes=off"),
        (lambda: WatchConfig(stall_factor=0.5), "stall_factor must be >= 1, .* got 0.5, 300, 1800"),
        (
            lambda: RunConfig(
                name="x",
                steps=3,
                watch=WatchConfig(spikes="skip"),
                parallel=ParallelConfig(precision="fp16"),
            ),
            "watch.spikes=skip needs parallel.precision=bf16 or fp32; got fp16",
        ),
        (
            lambda: RunConfig(
                name="x",
                steps=3,
                watch=WatchConfig(spikes="rollback"),
                parallel=ParallelConfig(precision="fp16"),
            ),
            "watch.spikes=rollback needs parallel.precision=bf16 or fp32; got fp16",
        ),
        (lambda: TrackingConfig(log_every=0), "tracking.log_every must be >= 1"),
        (lambda: TrackingConfig(task_norms_every=-2), "task_norms_every >= 0; got 10, 0 and -2"),
        (
            lambda: RunConfig(
                name="x",
                steps=3,
                tracking=TrackingConfig(task_norms_every=5),
                parallel=ParallelConfig(backend="deepspeed", zero_stage=3),
            ),
            "task_norms_every needs whole weights on every rank; got parallel.zero_stage=3",
        ),
        (lambda: RunConfig(name="x", steps=0), "steps must be >= 1; got 0"),
        (lambda: RunConfig(name="a/b", steps=3), "name must be one folder name; got 'a/b'"),
        (
            lambda: RunConfig(name="x", steps=3, schedule=ScheduleConfig(warmup_steps=3)),
            "schedule.warmup_steps must be below steps=3; got 3. Lower it",
        ),
    ],
)
def test_rule_says_what_to_change(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # type: ignore[operator]


def test_run_folder_follows_the_name_unless_it_is_given() -> None:
    config = RECIPES["scenes"]()
    assert str(config.run_folder) == "runs/scenes"
    assert str(replace(config, output_dir="x/y").run_folder) == "x/y"


def test_rule_of_another_package_becomes_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"model: model\.dim must be a multiple of 32"):
        override(RECIPES["scenes"](), ["model.dim=33"])
