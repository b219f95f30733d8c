"""One line of a check: a recorded file, and how far our numbers are from it at worst.

A check may run several times, once per set of operators; the line has a column for each run.
"""

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from kernels._select import default_backend

# columns: plain PyTorch, and the compiled operators
BACKENDS = {"reference": "reference", "fused": "cpu"}
_NUM_SHOWN = 5


@dataclass
class Run:
    """Deviations of one run, each also in units of what is allowed for it; at most 1 is good."""

    num_compared: int = 0
    worst: float = 0.0
    worst_ratio: float = 0.0
    worst_name: str = ""
    complaints: list[str] = field(default_factory=list)

    @property
    def is_good(self):
        return self.num_compared > 0 and self.worst_ratio <= 1.0 and not self.complaints

    def text(self):
        return (
            f"{self.num_compared} compared, worst deviation {self.worst:.2e} "
            f"({self.worst_ratio:.2f} of what is allowed) at {self.worst_name or '-'}"
            + "".join(f"; {each}" for each in self.complaints[:_NUM_SHOWN])
            + (f"; and {len(self.complaints) - _NUM_SHOWN} more" * self._has_more)
        )

    @property
    def _has_more(self):
        return len(self.complaints) > _NUM_SHOWN


@dataclass
class Line:
    """A recorded file; comparisons go to the newest run. notes: what is no result, and why."""

    name: str
    runs: dict[str, Run] = field(default_factory=lambda: {"": Run()})
    notes: list[str] = field(default_factory=list)

    @property
    def run(self):
        return list(self.runs.values())[-1]

    @property
    def complaints(self):
        return self.run.complaints

    def run_with_each_backend(self, check: Callable[[], None], columns: Iterable[str] = BACKENDS):
        """Run a check on the operators in plain PyTorch, then on the compiled ones."""
        self.runs.clear()
        for column in columns:
            backend = BACKENDS[column]
            self.runs[column] = Run()
            try:
                with default_backend(backend):
                    check()
            except Exception as error:
                # a file that cannot be checked is one failure among lines, not the end of them
                self.complaints.append(f"{type(error).__name__}: {error}")
                traceback.print_exc()

    def compare(self, name, actual, expected, *, atol=1e-4, rtol=0.0):
        """Add a tensor or number; the allowed deviation is atol + rtol * |expected|."""
        run = self.run
        actual, expected = (torch.as_tensor(each).detach().double() for each in (actual, expected))
        run.num_compared += 1
        if actual.shape != expected.shape:
            run.complaints.append(f"{name}: {list(actual.shape)} for {list(expected.shape)}")
            return
        if not expected.numel():
            return
        # a nan compares as false, so it must count as infinitely far
        error = (actual - expected).abs().nan_to_num(nan=float("inf"))
        ratio = (error / (atol + rtol * expected.abs())).max().item()
        if ratio >= run.worst_ratio:
            run.worst, run.worst_ratio, run.worst_name = error.max().item(), ratio, name

    def require(self, name, holds):
        """Add something that must be exact."""
        self.run.num_compared += 1
        if not holds:
            self.complaints.append(f"{name}: differs")

    @property
    def is_good(self):
        return all(run.is_good for run in self.runs.values())

    def text(self):
        verdict = "ok  " if self.is_good else "FAIL"
        columns = (
            f"{column}: {run.text()}" if column else run.text() for column, run in self.runs.items()
        )
        notes = "".join(f" [{note}]" for note in self.notes)
        return f"{verdict} {self.name}: {' | '.join(columns)}{notes}"
