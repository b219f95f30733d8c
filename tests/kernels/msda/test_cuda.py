import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from kernels._extension import CUDA_LIBRARY
from tests.testing.msda_cases import (
    Case,
    as_double,
    call,
    fused_inputs,
    grad_output_of,
    largest_errors,
    points_inputs,
    results,
)

REPOSITORY = Path(__file__).resolve().parents[3]
FLOAT32_BOUND = 1e-5
ROUNDING = {torch.float32: FLOAT32_BOUND, torch.bfloat16: 2**-8, torch.float16: 2**-11}
BACKENDS = ["triton", "cuda"]


@pytest.fixture(scope="module")
def ptx(tmp_path_factory):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on PATH")
    found = {}
    for architecture in (80, 90):
        out = tmp_path_factory.mktemp("ptx") / f"{architecture}.ptx"
        source = REPOSITORY / "csrc" / "msda" / "msda_cuda.cu"
        command = [nvcc, "-ptx", "-std=c++20", "--expt-relaxed-constexpr", str(source)]
        command += ["-o", str(out), "-arch", f"compute_{architecture}"]
        subprocess.run(command, check=True, capture_output=True)
        found[architecture] = out.read_text()
    return found


@pytest.mark.aot
@pytest.mark.slow
def test_cuda_kernels_compile_to_16_byte_loads_and_vector_reductions(ptx):
    for text in ptx.values():
        assert re.search(r"ld\.global(\.nc)?\.v4\.(f32|u32|b32)", text)
    # eight channels of 16 bits are two reductions of four float32
    assert "red.global.add.v4.f32" in ptx[90]
    assert "red.global.add.v4.f32" not in ptx[80]
    # deterministic mode adds 64-bit integers
    assert re.search(r"(atom|red)\.global\.add\.u64", ptx[80])


def _inputs(case, form, dtype):
    if form == 0:
        return points_inputs(case, dtype=dtype, device="cuda")
    return fused_inputs(case, coordinates=form, dtype=dtype, device="cuda")


def _errors(case, inputs, dtype, backend):
    grad_output = grad_output_of(case, dtype)
    found = results(call(case, inputs, backend=backend), inputs, grad_output.cuda())
    exact = results(
        call(case, inputs, backend="reference"), as_double(inputs), grad_output.double()
    )
    return largest_errors(found, exact)


def _skip_without_library(backend):
    if backend == "cuda" and not CUDA_LIBRARY.is_loaded:
        pytest.skip(f"the CUDA library is missing: {CUDA_LIBRARY.why_missing}")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("form", [0, 2, 4])
@pytest.mark.parametrize("head_dim", [8, 32, 40, 64, 128])
def test_gpu_agrees_with_the_reference_in_float64(backend, dtype, form, head_dim):
    _skip_without_library(backend)
    case = Case(num_queries=70, head_dim=head_dim)
    output, grad_value, *others = _errors(case, _inputs(case, form, dtype), dtype, backend)
    assert max(output, grad_value) < ROUNDING[dtype]
    assert max(others) < FLOAT32_BOUND


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [Case(num_images=0), Case(num_queries=0)])
def test_gpu_handles_empty_problems(backend, case):
    _skip_without_library(backend)
    assert max(_errors(case, _inputs(case, 2, torch.float32), torch.float32, backend)) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("form", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_mode_repeats_bit_by_bit(form, dtype):
    _skip_without_library("cuda")
    # thousands of samples of a few pixels: the order of atomics differs between runs
    case = Case(num_images=1, num_queries=4000, num_levels=1, head_dim=32)
    inputs = _inputs(case, form, dtype)
    grad_output = grad_output_of(case, dtype).cuda()
    torch.use_deterministic_algorithms(True)
    try:
        run = call(case, inputs, backend="cuda")
        first = results(run, inputs, grad_output)
        for _ in range(5):
            again = results(run, inputs, grad_output)
            assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
        output, grad_value, *_ = _errors(case, inputs, dtype, "cuda")
    finally:
        torch.use_deterministic_algorithms(False)
    assert max(output, grad_value) < ROUNDING[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_gpu_treats_points_that_are_not_finite_as_outside(backend):
    _skip_without_library(backend)
    case = Case()
    inputs = _inputs(case, 0, torch.float32)
    with torch.no_grad():
        inputs[1][0, 3, 1, 2, 4, 0] = float("nan")
        inputs[1][1, 5, 2, 0, 0, 1] = float("inf")
        inputs[2][1, 5, 2, 0, 0] = float("nan")
    assert max(_errors(case, inputs, torch.float32, backend)) < FLOAT32_BOUND


@pytest.mark.multigpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_gpu_follows_the_device_of_its_tensors(backend):
    _skip_without_library(backend)
    case = Case()
    inputs = [t.detach().to("cuda:1").requires_grad_() for t in _inputs(case, 2, torch.float32)]
    grad_output = grad_output_of(case, torch.float32)
    found = results(call(case, inputs, backend=backend), inputs, grad_output.to("cuda:1"))
    exact = results(
        call(case, inputs, backend="reference"), as_double(inputs), grad_output.double()
    )
    assert max(largest_errors(found, exact)) < FLOAT32_BOUND
