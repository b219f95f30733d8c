import argparse
import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.cli import add_run_options, asked_for, config_of, main_of, print_config, show_config
from pipelines.errors import (
    BackendUnavailable,
    CheckpointError,
    ConfigError,
    DataError,
    ExitCode,
    NonFiniteLossError,
)
from pipelines.recipes import RECIPES
from xdecoder.config import ConfigError as ModelConfigError


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_run_options(parser)
    return parser.parse_args(arguments)


def test_flags_and_assignments_reach_the_configuration() -> None:
    config = config_of(
        parsed(
            *("--recipe", "scenes", "--run-name", "half", "--output-dir", "out", "--seed", "5"),
            *("--shards", "a,b", "--init-from", "old", "--set", "schedule.kind=constant"),
        )
    )
    assert (config.name, config.output_dir, config.seed, config.init_from) == (
        *("half", "out", 5),
        "old",
    )
    assert config.data.segmentation.shards == config.data.image_text.shards == ("a", "b")
    assert config.schedule.kind == "constant"


def test_assignment_wins_over_a_flag() -> None:
    assert config_of(parsed("--seed", "5", "--set", "seed=6")).seed == 6


def test_smoke_shortens_the_run_and_keeps_the_rest() -> None:
    config, recipe = config_of(parsed("--smoke")), RECIPES["scenes"]()
    assert config.steps == 3
    assert config.schedule.warmup_steps == 0
    assert config.model == recipe.model


def test_what_was_asked_for_is_recorded() -> None:
    asked = asked_for(parsed("--seed", "5", "--set", "steps=9"))
    assert asked["recipe"] == "scenes"
    assert asked["assignments"] == ["seed=5", "steps=9"]


def test_printed_configuration_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_config(RECIPES["scenes"]())
    assert json.loads(capsys.readouterr().out)["optimizer"]["clip_norm"] > 0


def test_overview_has_a_line_per_group(capsys: pytest.CaptureFixture[str]) -> None:
    show_config(RECIPES["scenes"]())
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("data.segmentation.augment:") for line in lines)
    assert max(map(len, lines)) < 400


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (ModelConfigError("x"), 2),
        (CheckpointError("x"), 2),
        (BackendUnavailable("x"), 2),
        (DataError("x"), 3),
        (NonFiniteLossError("x"), 4),
        (torch.OutOfMemoryError("x"), 6),
        (MemoryError("x"), 6),
    ],
)
def test_error_leaves_its_exit_code_and_one_line(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb(_options: argparse.Namespace) -> int:
        raise error

    assert main_of(verb, argparse.ArgumentParser(prog="verb"), []) == code
    message = capsys.readouterr().err
    assert message.startswith("verb: ")
    assert len(message.splitlines()) == 1


def test_exit_codes_never_change() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "FINISHED": 0,
        "USAGE": 2,
        "DATA": 3,
        "NON_FINITE": 4,
        "HANG": 5,
        "OUT_OF_MEMORY": 6,
        "REQUEUE": 75,
        "INTERRUPTED": 130,
    }


def test_unknown_programming_errors_are_not_hidden(tmp_path: Path) -> None:
    def verb(_options: argparse.Namespace) -> int:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        main_of(verb, argparse.ArgumentParser(), [])


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fails_ends_with_one_line(fault: int, capsys: Any) -> None:
    def verb(_options: argparse.Namespace) -> int:
        raise OSError(fault, "written in full", "metrics.jsonl")

    assert main_of(verb, argparse.ArgumentParser(prog="pretrain"), []) == 3
    text = capsys.readouterr().err
    assert "written in full: 'metrics.jsonl'" in text
    assert "goes on from the last checkpoint" in text


def test_a_file_that_a_program_forgot_is_not_hidden() -> None:
    def verb(_options: argparse.Namespace) -> int:
        raise FileNotFoundError(errno.ENOENT, "no such file", "ours.py")

    with pytest.raises(FileNotFoundError):
        main_of(verb, argparse.ArgumentParser(), [])
