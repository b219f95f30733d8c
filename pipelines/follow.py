"""A run in the terminal while it goes on: `python -m pipelines.report RUN --follow`.

Reads the files of the run folder and nothing else, so it works wherever the folder can be seen.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.engine.heartbeat import Heartbeat, read_heartbeats
from pipelines.engine.progress import duration
from pipelines.errors import DataError
from pipelines.goodput import goodput
from pipelines.tracking.jsonl import read_events, read_metrics

Row = Mapping[str, Any]

_REFRESH_SECONDS = 2.0
# reading the files may take this share of the time between two frames
_READING_SHARE = 0.1
_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 48
_MAX_RANKS = 8
_NUM_EVENTS = 8
# heartbeats that a process may miss before it counts as gone
_GONE_SECONDS = 60.0
_ENDS = ("finished", "stopped", "failed", "forced_exit")
# facts that an event is told without
_HIDDEN = ("time", "event", "restart", "keys", "terms", "command", "slurm")


def follow(folder: Path, console: Console, *, is_once: bool) -> None:
    """Show frames until the run ends or the user has seen enough; `is_once`: one frame.

    Raises:
        DataError: the folder holds no run.
    """
    if not (folder / "events.jsonl").is_file():
        raise DataError(
            f"report: --follow needs the folder of a run that has started; {folder} has no "
            "events.jsonl. Name the run folder, or wait for the first log line."
        )
    if is_once:
        console.print(frame(folder, now=time.time()))
        return
    # the user has seen enough
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            began = time.monotonic()
            live.update(frame(folder, now=time.time()), refresh=True)
            if state_of(read_events(folder)) in _ENDS:
                return
            spent = time.monotonic() - began
            time.sleep(max(_REFRESH_SECONDS, spent / _READING_SHARE))


def frame(folder: Path, *, now: float) -> RenderableType:
    """Everything that is shown of a run at one moment, in seconds since 1970."""
    events, rows, heartbeats = read_events(folder), read_metrics(folder), read_heartbeats(folder)
    return Group(
        _headline(folder, events, rows, heartbeats, now),
        _curves(rows),
        _ranks(heartbeats, now, is_running=state_of(events) not in _ENDS),
        _last_events(events),
    )


def state_of(events: Sequence[Row]) -> str:
    """`running`, or the kind of event that ended the last start."""
    kinds = [event["event"] for event in events if event["event"] in ("start", *_ENDS)]
    return kinds[-1] if kinds and kinds[-1] != "start" else "running"


def curve(values: Sequence[float], *, width: int = _CURVE_WIDTH) -> str:
    """Finite values as bars, the lowest and the highest over the whole height.

    Where there are more than `width`, each bar is the mean of as many as fall into it.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    num_bars = min(width, len(finite))
    edges = [len(finite) * place // num_bars for place in range(num_bars + 1)]
    means = [math.fsum(finite[first:last]) / (last - first) for first, last in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    last_bar = len(_BARS) - 1
    return "".join(_BARS[round((mean - low) / span * last_bar) if span else 0] for mean in means)


def _headline(
    folder: Path,
    events: Sequence[Row],
    rows: Sequence[Row],
    heartbeats: Sequence[Heartbeat],
    now: float,
) -> RenderableType:
    state = state_of(events)
    is_running = state not in _ENDS
    num_steps = _num_steps(folder)
    timed: Row = next((row for row in reversed(rows) if "seconds_per_step" in row), {})
    step = max([row["step"] for row in rows[-1:]] + [each.step for each in heartbeats], default=0)
    parts = [f"step {step}/{num_steps or '?'}"]
    if rows and "loss" in rows[-1]:
        parts.append(f"loss {rows[-1]['loss']:.3f}")
    if timed:
        parts += _rates(timed)
    if timed and num_steps and is_running:
        parts.append(f"eta {duration((num_steps - step) * timed['seconds_per_step'])}")
    signs = [event["time"] for event in events] + [each.time for each in heartbeats]
    found = goodput(events, rows, until=now if is_running else max(signs))
    if found is not None:
        parts += [f"goodput {100 * found.share:.0f} %", f"starts {found.num_starts}"]
    num_rollbacks = max((event.get("num_rollbacks", 0) for event in events), default=0)
    if num_rollbacks:
        parts.append(f"rollbacks {num_rollbacks}")
    left_out = sum(row.get("left_out", 0) for row in rows)
    if left_out:
        parts.append(f"left out {left_out}")
    style = {"running": "bold green", "finished": "bold"}.get(state, "bold red")
    name = Text.assemble((folder.resolve().name, "bold"), "  ", (state, style))
    return Group(name, Text("  ".join(parts)))


def _rates(row: Row) -> list[str]:
    parts = [
        f"{row['seconds_per_step']:.2f} s/it",
        f"data {100 * row['data_wait']:.0f} %",
        f"{row['images_per_second']:.1f} img/s",
        f"{row.get('memory_gib', 0.0):.1f} GiB",
    ]
    return [*parts, f"mfu {100 * row['mfu']:.0f} %"] if "mfu" in row else parts


def _curves(rows: Sequence[Row]) -> RenderableType:
    table = Table(box=box.SIMPLE)
    for name in ("", "last", "course"):
        table.add_column(name, justify="right" if name == "last" else "left")
    tasks = sorted({name for row in rows for name in row if name.startswith("loss/")})
    norms = sorted({name for row in rows for name in row if name.startswith("grad_norm/")})
    for name in ("loss", *tasks, "gradient_norm", *norms, "learning_rate"):
        values = [row[name] for row in rows if name in row]
        if values:
            table.add_row(name, f"{values[-1]:.4g}", curve(values))
    return table


def _ranks(heartbeats: Sequence[Heartbeat], now: float, *, is_running: bool) -> RenderableType:
    """The ranks that have been in their step for longest first."""
    table = Table(box=box.SIMPLE)
    for name in ("rank", "host", "pid", "step", "s/it", "in step for", "state"):
        table.add_column(name, justify="left" if name in ("host", "state") else "right")
    slowest = sorted(heartbeats, key=lambda each: (each.step, each.step_time))
    for each in slowest[:_MAX_RANKS]:
        silence, in_step = now - each.time, duration(max(0.0, now - each.step_time))
        state = "lives"
        if not is_running:
            state = "has left"
        elif each.stalled_seconds:
            state = "stalls"
        elif silence > _GONE_SECONDS:
            state = f"silent for {duration(silence)}"
        table.add_row(
            *(str(each.rank), each.host, str(each.pid), str(each.step)),
            *(f"{each.median_seconds:.2f}", in_step if is_running else "", state),
            style="" if state in ("lives", "has left") else "red",
        )
    if len(slowest) > _MAX_RANKS:
        table.caption = f"and {len(slowest) - _MAX_RANKS} more ranks"
    return table


def _last_events(events: Sequence[Row]) -> RenderableType:
    table = Table(box=box.SIMPLE)
    for name in ("time", "event", "facts"):
        table.add_column(name, no_wrap=name != "facts")
    # of checkpoints in a row only the last one says something
    told_events = [
        event
        for event, after in zip(events, [*events[1:], {}], strict=True)
        if (event["event"], after.get("event")) != ("checkpoint", "checkpoint")
    ]
    for event in told_events[-_NUM_EVENTS:]:
        facts = {name: value for name, value in event.items() if name not in _HIDDEN}
        told = "  ".join(f"{name} {value}" for name, value in facts.items())
        moment = datetime.fromtimestamp(event["time"]).astimezone()
        table.add_row(f"{moment:%m-%d %H:%M:%S}", event["event"], Text(told))
    return table


def _num_steps(folder: Path) -> int:
    """How many steps the run is to take, 0 where that is not written down."""
    path = folder / "config.resolved.json"
    return int(json.loads(path.read_text())["steps"]) if path.is_file() else 0
