"""How a run will leave, made ready at its start: forced exit, wall time, what is too short."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pipelines.config import PreemptionConfig
from pipelines.engine.signals import StopFlag
from pipelines.engine.wall_time import JobLimits, WallTime, estimate_save_seconds, read_limits
from pipelines.tracking.jsonl import EventLog, read_events

_log = logging.getLogger(__name__)
# in a checkpoint: the weights, two moments, an average
_NUM_SAVED_COPIES = 4
# saves of earlier starts that say how long the next one takes
_NUM_SAVES = 5


def prepare_leaving(
    config: PreemptionConfig, stop: StopFlag, *, model: nn.Module, events: EventLog | None
) -> WallTime | None:
    """The clock of the job, on the rank that has the events; every rank arms its forced exit.

    What does not fit into the job's time is logged and written as an event `too_short`.
    """
    limits = read_limits(os.environ)
    _arm(config, stop, limits, events)
    if events is None:
        return None
    wall_time = WallTime(
        limits,
        margin_seconds=config.margin_seconds,
        save_seconds=_expected_save_seconds(events.folder, model, limits),
    )
    if limits != JobLimits():
        events.write("limits", _facts(wall_time))
    for complaint in wall_time.complaints():
        _log.warning(complaint)
        events.write("too_short", {"message": complaint})
    return wall_time


def _arm(
    config: PreemptionConfig, stop: StopFlag, limits: JobLimits, events: EventLog | None
) -> None:
    forced = stop.forced_exit
    forced.seconds = config.grace_seconds or None
    # half the margin remains for the batch script
    forced.latest = None if limits.end is None else limits.end - config.margin_seconds / 2
    if events is not None:
        forced.last_words = lambda: events.write("forced_exit", {"signal": stop.reason})


def _expected_save_seconds(folder: Path, model: nn.Module, limits: JobLimits) -> float:
    """As long as the last saves took; before the first one, from the speed of the disk."""
    saves = [event["seconds"] for event in read_events(folder) if event["event"] == "checkpoint"]
    if saves:
        return max(saves[-_NUM_SAVES:])
    if limits == JobLimits():
        return 0.0
    size = sum(value.numel() * value.element_size() for value in model.parameters())
    return estimate_save_seconds(folder, _NUM_SAVED_COPIES * size)


def _facts(wall_time: WallTime) -> Mapping[str, Any]:
    left = wall_time.seconds_left()
    return {
        "seconds_left": None if left is None else round(left, 1),
        "kill_wait": wall_time.limits.kill_wait,
        "save_seconds": round(wall_time.save_seconds, 3),
        "needed_seconds": round(wall_time.needed_seconds, 3),
    }
