"""`python -m kernels`: what each operator can run here, and why not what it cannot.

One line per operator, device, backend and dtype: forward, backward, whether the backward repeats
bit by bit, and the reason where the backend cannot run.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from kernels._extension import CPU_LIBRARY, CUDA_LIBRARY
from kernels._select import Candidate
from kernels.masked_xattn.api import candidates_for as masked_candidates
from kernels.msda.backends import Call, candidates

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MSDA, _MASKED = "deformable attention", "masked attention"
# whether the backward repeats bit by bit; a pair that is not here is a backend of another device
_REPEATS = {
    (_MSDA, "cpu", "cpu"): "yes",
    (_MSDA, "cpu", "reference"): "yes",
    # with torch.use_deterministic_algorithms
    (_MSDA, "cuda", "cuda"): "on request",
    (_MSDA, "cuda", "triton"): "no",
    # grid_sample adds with atomics
    (_MSDA, "cuda", "reference"): "no",
    (_MASKED, "cpu", "cpu"): "yes",
    (_MASKED, "cpu", "sdpa"): "yes",
    (_MASKED, "cpu", "reference"): "yes",
    (_MASKED, "cuda", "triton"): "yes",
    (_MASKED, "cuda", "sdpa"): "no",
    (_MASKED, "cuda", "reference"): "yes",
}


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One line of the table."""

    op: str
    device: str
    backend: str
    dtype: str
    is_available: bool
    repeats: str
    reason: str


def capabilities() -> Iterator[Capability]:
    """What both operators can run here, for heads of 32 channels, 3 levels, 4 points."""
    for op, device, dtype in product((_MSDA, _MASKED), ("cpu", "cuda"), _DTYPES):
        for candidate in _candidates_of(op, torch.device(device), dtype):
            # a backend of the other device is no news
            if (op, device, candidate.name) in _REPEATS:
                yield _capability(op, device, dtype, candidate)


def _candidates_of(op: str, device: torch.device, dtype: torch.dtype) -> Sequence[Candidate]:
    if op == _MASKED:
        return masked_candidates(device, dtype, head_dim=32)
    sizes = {"num_pixels": 21504, "num_heads": 8, "head_dim": 32, "num_levels": 3, "num_points": 4}
    return candidates(Call(device=device, dtype=dtype, is_deterministic=False, **sizes))


def _capability(op: str, device: str, dtype: torch.dtype, candidate: Candidate) -> Capability:
    reason = candidate.why_not
    if device == "cuda" and not torch.cuda.is_available():
        reason = reason or "no GPU is visible."
    return Capability(
        op=op,
        device=device,
        backend=candidate.name,
        dtype=str(dtype).removeprefix("torch."),
        is_available=reason is None,
        repeats=_REPEATS[op, device, candidate.name] if reason is None else "-",
        reason=reason or "",
    )


def instruction_set() -> str:
    """The instruction set that the CPU kernels use, or why there are none."""
    if not CPU_LIBRARY.is_loaded:
        return str(CPU_LIBRARY.why_missing)
    library = ctypes.CDLL(str(Path(__file__).parent / "_cpu.so"))
    library.xdec_instruction_set.restype = ctypes.c_char_p
    return str(library.xdec_instruction_set().decode())


def main() -> None:
    """Print the table."""
    print(f"torch {torch.__version__}; C++ kernels: {instruction_set()}")
    print(f"CUDA kernels: {CUDA_LIBRARY.why_missing or 'loaded'}\n")
    header = ("operator", "device", "backend", "dtype", "forward", "backward", "repeats", "reason")
    lines = [header]
    for one in capabilities():
        runs = "yes" if one.is_available else "no"
        line = (one.op, one.device, one.backend, one.dtype, runs, runs, one.repeats, one.reason)
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    main()
