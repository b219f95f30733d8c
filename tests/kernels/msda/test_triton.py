import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.msda import backends, register

triton = pytest.importorskip("triton")
REPOSITORY = Path(__file__).resolve().parents[3]
# float32 sums of at most 64 channels and 10 samples; coordinates up to 9 px: see test_cpu.py
FLOAT32_BOUND = 1e-5
FLOAT16_ROUNDING = 2**-11
ARCHITECTURES = (80, 90, 100)


@pytest.fixture(scope="module")
def interpreted():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-m", "tests.testing.triton_msda"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.interp
@pytest.mark.parametrize(
    "case",
    ["points float32", "fused 2 float32", "fused 4 float32", "wide rows", "hostile"],
)
def test_float32_agrees_with_the_reference_in_float64(interpreted, case):
    assert max(interpreted[case]) < FLOAT32_BOUND


@pytest.mark.interp
@pytest.mark.parametrize("case", ["points float16", "fused 2 float16", "fused 4 float16"])
def test_float16_values_lose_one_rounding(interpreted, case):
    output, grad_value, *others = interpreted[case]
    assert max(output, grad_value) < FLOAT16_ROUNDING
    assert max(others) < FLOAT32_BOUND


@pytest.mark.interp
@pytest.mark.parametrize("case", ["no queries", "no images"])
def test_empty_problems_are_empty(interpreted, case):
    assert max(interpreted[case]) == 0


def test_the_interpreter_is_not_used_for_bfloat16(monkeypatch):
    monkeypatch.setattr(backends, "_IS_INTERPRETED", True)
    sizes = {"num_pixels": 4, "num_heads": 1, "head_dim": 8, "num_levels": 1, "num_points": 1}
    call = backends.Call(
        device=torch.device("cpu"), dtype=torch.bfloat16, is_deterministic=False, **sizes
    )
    reasons = {one.name: one.why_not for one in backends.candidates(call)}
    assert "computes wrongly in bfloat16" in reasons["triton"]


def test_the_backward_refuses_deterministic_mode():
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="Triton backward adds with atomics"):
            register._triton_backward(*[torch.zeros(1)] * 2, [1, 1], *[torch.zeros(1)] * 2, True)
    finally:
        torch.use_deterministic_algorithms(False)


def _compile(kernel, value_type, sample_type, form, architecture):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kernels.msda.impl_triton import launch_options

    constants = {"N": 8, "D": 32, "L": 3, "P": 4, "FORM": form, **launch_options(32, 12)}
    types = {"num_pixels": "i32", "num_queries": "i32", "levels_ptr": "*i32"}
    for name in ("value_ptr", "output_ptr", "grad_output_ptr"):
        types[name] = f"*{value_type}"
    for name in ("samples_ptr", "weights_ptr", "grad_samples_ptr", "grad_weights_ptr"):
        types[name] = f"*{sample_type}"
    for name in ("reference_ptr", "grad_value_ptr", "grad_reference_ptr"):
        types[name] = "*fp32"
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    # tensors of Torch start at multiples of 16 bytes; without this every load is scalar
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if name.endswith("_ptr")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": 4}).asm


@pytest.mark.aot
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("value_type", "sample_type", "form"), [("fp32", "fp32", 0), ("bf16", "bf16", 2)]
)
def test_forward_compiles_to_vector_loads(value_type, sample_type, form, architecture):
    from kernels.msda.impl_triton import _msda_forward_kernel

    compiled = _compile(_msda_forward_kernel, value_type, sample_type, form, architecture)
    assert len(compiled["cubin"]) > 0
    # 16 bytes per thread and row
    assert re.search(r"ld\.global\.v4\.b32", compiled["ptx"])


@pytest.mark.aot
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("value_type", "sample_type", "form"), [("fp32", "fp32", 0), ("fp16", "fp16", 4)]
)
def test_backward_compiles_to_vector_reductions(value_type, sample_type, form, architecture):
    from kernels.msda.impl_triton import _msda_backward_kernel

    compiled = _compile(_msda_backward_kernel, value_type, sample_type, form, architecture)
    assert len(compiled["cubin"]) > 0
    assert re.search(r"ld\.global\.v4\.b32", compiled["ptx"])
    vector = r"(red|atom)\.global[.\w]*\.v4\.f32"
    scalar = r"(red|atom)\.global[.\w]*\.add\.f32"
    # vector reductions came with sm_90
    assert re.search(scalar if architecture < 90 else vector, compiled["ptx"])
