"""What every benchmark shares: timing in turn, peak memory, machine facts, rows and the table.

JSON: {"machine": {...}, "rows": [{"op", "shape", "dtype", "threads", "pass", "implementation",
"ms", "rel_error", "peak_mb"}, ...]}. `ms` is the median, None where nothing was timed.
"""

import ctypes
import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
# larger than the L2 cache of any GPU that is sold today
_FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured implementation; `pass_` is "forward" or "forward_backward"."""

    op: str
    shape: str
    dtype: str
    threads: int
    pass_: str
    implementation: str
    ms: float | None
    rel_error: float | None
    peak_mb: float | None

    def as_json(self) -> dict[str, object]:
        """The row under the names of the result files."""
        return {name.rstrip("_"): value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one implementation: wall clock, and process time where there is a CPU."""

    median_ms: float
    best_ms: float
    spread_ms: float
    best_cpu_ms: float
    num_runs: int


def machine_info(device: str) -> dict[str, object]:
    """Facts about this machine that a reader needs to judge the numbers."""
    info: dict[str, object] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor_name(),
        "num_cpus": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        info |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": _driver_version(),
        }
    return info


def machine_folder(device: str) -> Path:
    """Where results of this machine are kept: benchmarks/results/<processor or GPU>."""
    info = machine_info(device)
    name = str(info["gpu"]) if device == "cuda" else f"{info['processor']}-{info['num_cpus']}cpu"
    folder = RESULTS / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def time_in_turn(
    functions: Mapping[str, Callable[[], object]],
    *,
    device: str,
    budget_s: float = 4.0,
    max_runs: int = 50,
) -> dict[str, Timing]:
    """Timings of all functions, run one after another in rounds so that noise hits all alike.

    Each function gets at most `budget_s` seconds and `max_runs` runs, but at least 3 runs.
    """
    spent = dict.fromkeys(functions, 0.0)
    walls: dict[str, list[float]] = {name: [] for name in functions}
    processes: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(max_runs):
        for name, function in functions.items():
            if spent[name] > budget_s and len(walls[name]) >= 3:
                continue
            wall, process = _time_once(function, device)
            walls[name].append(wall)
            processes[name].append(process)
            spent[name] += wall
    return {name: _timing(walls[name], processes[name]) for name in functions}


def peak_mb(function: Callable[[], object], *, device: str) -> float | None:
    """Memory that one call needs on top of what is already held, None where it cannot be read."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    reset = Path("/proc/self/clear_refs")
    try:
        # freed blocks that the allocator kept would hide the need of the next call
        ctypes.CDLL(None).malloc_trim(0)
        # 5: set the high-water mark back to what is resident now
        reset.write_text("5")
    except (OSError, AttributeError):
        return None
    before = _resident_mb("VmRSS")
    function()
    return max(0.0, _resident_mb("VmHWM") - before)


def relative_error(result: Tensor, exact: Tensor) -> float:
    """Largest absolute error over the largest absolute value; infinite when not finite."""
    difference = (result.detach().double() - exact.double()).abs().max()
    scale = exact.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    error = float(difference / scale)
    return error if math.isfinite(error) else math.inf


def write_json(path: Path, device: str, rows: Sequence[Row]) -> None:
    """Write the machine and the rows to `path`."""
    document = {"machine": machine_info(device), "rows": [row.as_json() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def print_table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Print aligned columns; numbers to the right."""
    cells = [[_cell(value) for value in line] for line in (header, *lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    for index, line in enumerate(cells):
        numeric = index > 0
        padded = [
            text.rjust(width) if numeric and _is_number(text) else text.ljust(width)
            for text, width in zip(line, widths, strict=True)
        ]
        print("  ".join(padded).rstrip())
        if index == 0:
            print("  ".join("-" * width for width in widths))


def _time_once(function: Callable[[], object], device: str) -> tuple[float, float]:
    if device == "cuda":
        torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda").zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        elapsed = start.elapsed_time(end) / 1e3
        return elapsed, elapsed
    wall, process = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - process


def _timing(walls: list[float], processes: list[float]) -> Timing:
    quartiles = statistics.quantiles(walls, n=4)
    return Timing(
        median_ms=statistics.median(walls) * 1e3,
        best_ms=min(walls) * 1e3,
        spread_ms=(quartiles[2] - quartiles[0]) * 1e3,
        best_cpu_ms=min(processes) * 1e3,
        num_runs=len(walls),
    )


def _resident_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    kilobytes = re.search(rf"{field}:\s+(\d+) kB", status)
    return int(kilobytes.group(1)) / 1024 if kilobytes else 0.0


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _commit() -> str:
    root = Path(__file__).parent
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.strip()


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1e}" if value and abs(value) < 1e-2 else f"{value:.2f}"
    return str(value)


def _is_number(text: str) -> bool:
    return text == "-" or re.fullmatch(r"[-+0-9.e%x]+", text) is not None
