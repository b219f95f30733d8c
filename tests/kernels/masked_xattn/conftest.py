"""Problems and comparisons of the masked cross-attention tests."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.masked_xattn import MaskBits, pack_mask_bits

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Operands of one attention; heads are split from interleaved channels, so strided."""

    q: Tensor
    k: Tensor
    v: Tensor
    packed: MaskBits
    grad_out: Tensor

    def to(self, dtype: torch.dtype) -> "Problem":
        """Copy with operands of `dtype` that require gradients."""
        q, k, v = (x.detach().to(dtype).requires_grad_() for x in (self.q, self.k, self.v))
        return Problem(q=q, k=k, v=v, packed=self.packed, grad_out=self.grad_out.to(dtype))


MakeProblem = Callable[..., Problem]


@pytest.fixture
def make_problem() -> MakeProblem:
    """Factory: sizes and the share of visible keys, or the dense mask itself, to a problem."""

    def make(
        sizes_bnqkd: tuple[int, int, int, int, int],
        *,
        visible: float | Tensor = 0.3,
        dtype: torch.dtype = torch.float32,
    ) -> Problem:
        b, n, q, k, d = sizes_bnqkd
        operands = [torch.randn(b, rows, n, d, dtype=dtype).transpose(1, 2) for rows in (q, k, k)]
        may_attend = torch.rand(b, q, k) < visible if isinstance(visible, float) else visible
        return Problem(
            q=operands[0],
            k=operands[1],
            v=operands[2],
            packed=pack_mask_bits(may_attend),
            grad_out=torch.randn(b, n, q, d, dtype=dtype),
        )

    return make


@pytest.fixture
def nan_outputs() -> Iterator[None]:
    """Fill fresh memory with NaN, so that an element never written is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def assert_as_accurate() -> Callable[..., None]:
    """Comparison with the error of the reference in the same dtype."""
    return _assert_as_accurate


def _assert_as_accurate(actual: Tensor, same_dtype: Tensor, exact: Tensor, *, name: str) -> None:
    """None when `actual` errs at most twice as much as the reference in the same dtype does.

    Two roundings of the largest value are allowed on top: the reference may be lucky.
    """
    assert torch.equal(actual.isnan(), exact.isnan()), f"{name}: NaN in other places"
    floor = 2 * torch.finfo(same_dtype.dtype).eps * exact.abs().max()
    allowed = 2 * (same_dtype.double() - exact).abs().max() + floor
    error = (actual.double() - exact).abs().max()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


@pytest.fixture(scope="session")
def run_script() -> Callable[..., str]:
    """Runner of a Python script in a fresh process, with environment variables."""
    return _run_script


def _run_script(script: str, **environment: str) -> str:
    """Return the standard output of a Python script in a fresh process."""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
