"""Which backend can run a call of deformable attention, and why another cannot."""

import importlib.util
import os
from dataclasses import dataclass

import torch

from kernels._extension import CPU_LIBRARY, CUDA_LIBRARY
from kernels._select import Candidate

# offsets inside one image are 32-bit on every backend but the reference
_INT32_OFFSETS = 2**31
# the widest row padding of the CPU kernels, 16 lanes of AVX-512
_CPU_ROW_PADDING = 16
# a [queries, samples] tile of Triton must fit registers
_TRITON_MAX_SAMPLES = 128
_TRITON_MAX_HEAD_DIM = 256
# the level table is a kernel argument of fixed size; a warp covers one row
_CUDA_MAX_LEVELS = 8
_CUDA_MAX_SAMPLES = 64
_CUDA_MAX_HEAD_DIM = 128
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True, kw_only=True)
class Call:
    """What the choice depends on; `is_deterministic` as torch.use_deterministic_algorithms."""

    device: torch.device
    dtype: torch.dtype
    num_pixels: int
    num_heads: int
    head_dim: int
    num_levels: int
    num_points: int
    is_deterministic: bool


def candidates(call: Call) -> list[Candidate]:
    """The backends from fastest to slowest, each with the reason why it cannot run `call`."""
    return [
        Candidate(name="cpu", why_not=_why_not_cpu(call)),
        Candidate(name="cuda", why_not=_why_not_cuda(call)),
        Candidate(name="triton", why_not=_why_not_triton(call)),
        Candidate(name="reference", why_not=None),
    ]


def _why_not_cpu(call: Call) -> str | None:
    if call.device.type != "cpu":
        return f"the tensors are on {call.device}."
    if call.num_pixels * call.num_heads * (call.head_dim + _CPU_ROW_PADDING) >= _INT32_OFFSETS:
        return f"S * N * (D + {_CPU_ROW_PADDING}) must be below 2^31 (32-bit offsets)."
    return CPU_LIBRARY.why_missing


def _why_not_cuda(call: Call) -> str | None:
    if call.device.type != "cuda":
        return f"the tensors are on {call.device}, not on a GPU."
    if call.dtype == torch.float64:
        return "float64 runs on backend 'reference' only."
    lane = 16 // call.dtype.itemsize
    if call.head_dim % lane or call.head_dim > _CUDA_MAX_HEAD_DIM:
        return f"D must be a multiple of {lane} (16-byte loads), at most {_CUDA_MAX_HEAD_DIM}."
    num_samples = call.num_levels * call.num_points
    if call.num_levels > _CUDA_MAX_LEVELS or num_samples > _CUDA_MAX_SAMPLES:
        return f"L must be at most {_CUDA_MAX_LEVELS} and L * P at most {_CUDA_MAX_SAMPLES}."
    if call.num_pixels * call.num_heads * call.head_dim >= _INT32_OFFSETS:
        return "S * N * D must be below 2^31 (32-bit offsets)."
    return CUDA_LIBRARY.why_missing


def _why_not_triton(call: Call) -> str | None:
    if not _HAS_TRITON:
        return "triton is not installed."
    if call.device.type != "cuda" and not _IS_INTERPRETED:
        return f"the tensors are on {call.device}, not on a GPU."
    if call.dtype == torch.float64:
        return "it computes in float32; float64 runs on backend 'reference'."
    if call.dtype == torch.bfloat16 and _IS_INTERPRETED:
        return "the interpreter of Triton computes wrongly in bfloat16."
    num_samples = call.num_levels * call.num_points
    if call.head_dim > _TRITON_MAX_HEAD_DIM or num_samples > _TRITON_MAX_SAMPLES:
        return f"D must be at most {_TRITON_MAX_HEAD_DIM}, L * P at most {_TRITON_MAX_SAMPLES}."
    if call.num_pixels * call.num_heads * call.head_dim >= _INT32_OFFSETS:
        return "S * N * D must be below 2^31 (32-bit offsets)."
    if call.is_deterministic:
        return "its backward adds with atomics, and deterministic algorithms are required."
    return None
