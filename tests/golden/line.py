"""One line of a check: a recorded file, and how far our numbers are from it at worst."""

from dataclasses import dataclass, field

import torch


@dataclass
class Line:
    """Deviations of one file, each in units of what is allowed for it; at most 1 is good."""

    name: str
    num_compared: int = 0
    worst: float = 0.0
    worst_ratio: float = 0.0
    worst_name: str = ""
    complaints: list[str] = field(default_factory=list)

    def compare(self, name, actual, expected, *, atol=1e-4, rtol=0.0):
        """Add a tensor or number; the allowed deviation is atol + rtol * |expected|."""
        actual, expected = (torch.as_tensor(each).detach().double() for each in (actual, expected))
        self.num_compared += 1
        if actual.shape != expected.shape:
            self.complaints.append(f"{name}: {list(actual.shape)} for {list(expected.shape)}")
            return
        if not expected.numel():
            return
        # a nan compares as false, so it must count as infinitely far
        error = (actual - expected).abs().nan_to_num(nan=float("inf"))
        ratio = (error / (atol + rtol * expected.abs())).max().item()
        if ratio >= self.worst_ratio:
            self.worst, self.worst_ratio, self.worst_name = error.max().item(), ratio, name

    def require(self, name, holds):
        """Add something that must be exact."""
        self.num_compared += 1
        if not holds:
            self.complaints.append(f"{name}: differs")

    @property
    def is_good(self):
        return self.num_compared > 0 and self.worst_ratio <= 1.0 and not self.complaints

    def text(self):
        verdict = "ok  " if self.is_good else "FAIL"
        return (
            f"{verdict} {self.name}: {self.num_compared} compared, worst deviation "
            f"{self.worst:.2e} ({self.worst_ratio:.2f} of what is allowed) at "
            f"{self.worst_name or '-'}" + "".join(f"; {each}" for each in self.complaints[:5])
        )
