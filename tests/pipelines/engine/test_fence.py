"""Two starts of one run at the same time, as after the loss of a node that was not lost."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines.engine.fence import Fence
from pipelines.errors import ConfigError
from pipelines.tracking.jsonl import read_events, read_metrics
from tests.testing.waiting import wait_until


def test_newest_start_owns_the_folder(tmp_path: Path) -> None:
    older = Fence(tmp_path)
    older.check()
    newer = Fence(tmp_path)
    newer.check()
    with pytest.raises(ConfigError, match=r"belongs to a newer start of this run.*Start one job"):
        older.check()


def test_older_start_ends_without_writing_and_the_newer_one_is_not_disturbed(
    tmp_path: Path,
    tiny: ModuleType,
    train_tiny: Callable[..., int],
    curve: Callable[[Path], dict[int, dict[str, float]]],
) -> None:
    def overtaken(*places: Any, **named: Any) -> Iterator[Any]:
        for index, item in enumerate(tiny.tiny_stream(*places, **named)):
            if index == 7:
                # checkpoints are written beside the training
                wait_until((tmp_path / "run" / "checkpoints" / "step_00000006").is_dir, "step 6")
                assert train_tiny(tmp_path / "run") == 0
            yield item

    train_tiny(tmp_path / "whole")
    with pytest.raises(ConfigError, match="belongs to a newer start"):
        train_tiny(tmp_path / "run", make_stream=overtaken)
    # the older one had taken 7 steps and was about to write its eighth row
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert {row["restart"] for row in read_metrics(tmp_path / "run")[6:]} == {1}
    told = [(event["event"], event["restart"]) for event in read_events(tmp_path / "run")]
    assert told[-1] == ("failed", 0)
    assert ("finished", 1) in told
