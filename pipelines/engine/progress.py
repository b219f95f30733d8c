"""One line per logging step: a moving bar on a terminal, plain lines anywhere else."""

import logging
import math
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_log = logging.getLogger(__name__)


class ProgressLine:
    """Shows where the run is; on ranks other than 0 it shows nothing."""

    def __init__(self, *, num_steps: int, first_step: int, is_shown: bool) -> None:
        self._num_steps = num_steps
        self._is_shown = is_shown
        self._bar: Progress | None = None
        self._task = TaskID(0)
        console = Console()
        if is_shown and console.is_terminal:
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("", total=num_steps, completed=first_step)

    def __enter__(self) -> "ProgressLine":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, row: Mapping[str, float | int], *, memory_gib: float) -> None:
        """Show the row of a logging step."""
        if not self._is_shown:
            return
        line = describe_row(row, num_steps=self._num_steps, memory_gib=memory_gib)
        if self._bar is not None:
            self._bar.update(self._task, completed=int(row["step"]), description=line)
        else:
            _log.info(line)


def describe_row(row: Mapping[str, float | int], *, num_steps: int, memory_gib: float) -> str:
    """The log line of a row that has timing."""
    tasks = " ".join(
        f"{name.removeprefix('loss/')} {value:.2f}"
        for name, value in row.items()
        if name.startswith("loss/")
    )
    eta = (num_steps - row["step"]) * row["seconds_per_step"]
    mfu = f"mfu {100 * row['mfu']:.0f} %  " if "mfu" in row else ""
    return (
        f"step {row['step']}/{num_steps}  loss {row.get('loss', math.nan):.3f} ({tasks})  "
        f"lr {row['learning_rate']:.2e}  grad {row['gradient_norm']:.2f}  "
        f"{row['seconds_per_step']:.2f} s/it  data {100 * row['data_wait']:.0f} %  "
        f"{row['images_per_second']:.1f} img/s  {memory_gib:.1f} GiB  {mfu}eta {duration(eta)}"
    )


def duration(seconds: float) -> str:
    """Days, hours, minutes or seconds, the two largest of them."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole % 60:02d}s"
