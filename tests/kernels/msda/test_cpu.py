import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels._extension import CPU_LIBRARY
from tests.testing.msda_cases import (
    INSTRUCTION_SETS,
    Case,
    as_double,
    call,
    fused_inputs,
    grad_output_of,
    largest_errors,
    limit_instruction_set,
    points_inputs,
    results,
)

pytestmark = pytest.mark.skipif(
    not CPU_LIBRARY.is_loaded, reason=f"the C++ library is missing: {CPU_LIBRARY.why_missing}"
)
# sums of up to 40 samples of 4 corners and 128 channels: a few hundred roundings of random sign,
# so about 20 * 2^-24 of the largest magnitude; coordinates add up to 9 px * 2^-24 * 8
FLOAT32_BOUND = 1e-5
# outputs and gradients are rounded once to 8 or 11 bits after float32 sums
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.fixture(params=INSTRUCTION_SETS, autouse=True)
def instruction_set(request):
    if limit_instruction_set(request.param) != request.param:
        limit_instruction_set(None)
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    limit_instruction_set(None)


@pytest.fixture(autouse=True)
def outputs_start_as_nan():
    # deterministic algorithms fill new tensors with NaN, so that what is not written shows
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _inputs(case, form, dtype, seed=0):
    if form == 0:
        return points_inputs(case, dtype=dtype, seed=seed)
    return fused_inputs(case, coordinates=form, dtype=dtype, seed=seed)


def _errors(case, inputs, dtype):
    grad_output = grad_output_of(case, dtype)
    exact_inputs = as_double(inputs)
    found = results(call(case, inputs, backend="cpu"), inputs, grad_output)
    exact = results(call(case, inputs, backend="reference"), exact_inputs, grad_output.double())
    return largest_errors(found, exact)


CASES = st.builds(
    Case,
    num_images=st.integers(1, 3),
    num_queries=st.integers(1, 70),
    num_heads=st.integers(1, 4),
    head_dim=st.sampled_from([4, 5, 8, 16, 24, 32, 48, 64, 100, 128]),
    num_levels=st.integers(1, 5),
    num_points=st.integers(1, 8),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=CASES, form=st.sampled_from([0, 2, 4]), seed=st.integers(0, 99))
def test_float32_agrees_with_the_reference_in_float64(case, form, seed):
    inputs = _inputs(case, form, torch.float32, seed)
    assert max(_errors(case, inputs, torch.float32)) < FLOAT32_BOUND


@settings(max_examples=8, deadline=None, derandomize=True)
@given(case=CASES, form=st.sampled_from([0, 2, 4]))
def test_float64_agrees_with_the_reference(case, form):
    inputs = _inputs(case, form, torch.float64)
    # as FLOAT32_BOUND, with 53 bits
    assert max(_errors(case, inputs, torch.float64)) < FLOAT32_BOUND * 2**-29


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", [0, 2, 4])
def test_sixteen_bit_values_lose_one_rounding(dtype, form):
    case = Case(num_queries=40, head_dim=40)
    inputs = _inputs(case, form, dtype)
    output, grad_value, *others = _errors(case, inputs, dtype)
    assert max(output, grad_value) < ROUNDING[dtype]
    # points and weights are float32 and stay so
    assert max(others) < FLOAT32_BOUND


@pytest.mark.parametrize("form", [0, 2, 4])
def test_gradients_are_right_in_float64(form):
    case = Case(num_images=2, num_queries=3, num_heads=1, head_dim=5, num_levels=3, num_points=2)
    inputs = _inputs(case, form, torch.float64)
    assert torch.autograd.gradcheck(call(case, inputs, backend="cpu"), inputs)


@pytest.mark.parametrize("pixel", [-1.0, -0.5, 0.0, 0.5, 1.0, 6.0, 6.5, 7.0])
def test_points_on_borders_and_centres_take_the_side_of_the_reference(pixel):
    # sizes are powers of two: the coordinates are exact in every arithmetic
    levels = ((2, 8),)
    value, weights = torch.randn(1, 16, 3, 4).double(), torch.rand(1, 1, 3, 1, 1).double()
    points = torch.tensor([(pixel + 0.5) / 8, 0.5]).double().expand(1, 1, 3, 1, 1, 2)
    inputs = [t.clone().requires_grad_() for t in (value, points, weights)]
    grad_output = torch.randn(1, 1, 12).double()

    def run(backend):
        return lambda v, p, w: kernels.multi_scale_deformable_attention(
            v, levels, p, w, backend=backend
        )

    found = results(run("cpu"), inputs, grad_output)
    exact = results(run("reference"), inputs, grad_output)
    assert max(largest_errors(found, exact)) < 1e-14


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_a_point_that_is_not_finite_counts_nothing(bad):
    case = Case()
    inputs = points_inputs(case, dtype=torch.float32)
    with torch.no_grad():
        inputs[1][0, 3, 1, 2, 4, 0] = bad
        inputs[1][1, 5, 2, 0, 0, 1] = bad
    assert max(_errors(case, inputs, torch.float32)) < FLOAT32_BOUND


def test_nan_values_stay_where_points_touch_them():
    case = Case(num_levels=1, num_queries=30)
    inputs = points_inputs(case, dtype=torch.float32)
    with torch.no_grad():
        inputs[0][0, 0] = math.nan
        inputs[0][1, -1] = math.inf
    found = call(case, inputs, backend="cpu")(*inputs)
    exact = call(case, inputs, backend="reference")(*as_double(inputs))
    assert exact.isnan().any()
    assert not exact.isnan().all()
    assert torch.equal(found.isfinite(), exact.isfinite())


def test_an_infinite_weight_outside_the_image_counts_nothing():
    case = Case()
    inputs = points_inputs(case, dtype=torch.float32)
    with torch.no_grad():
        inputs[1][0, 0, 0, 0, 0] = -7.0
        inputs[2][0, 0, 0, 0, 0] = math.inf
    assert max(_errors(case, inputs, torch.float32)) < FLOAT32_BOUND


@pytest.mark.parametrize("form", [0, 2, 4])
def test_strided_inputs_give_the_same(form):
    case = Case(num_queries=12)
    inputs = _inputs(case, form, torch.float32)
    grad_output = grad_output_of(case, torch.float32)
    strided = [t.detach().movedim(1, -1).contiguous().movedim(-1, 1) for t in inputs]
    strided = [t.requires_grad_() for t in strided]
    assert not any(t.is_contiguous() for t in strided)
    found = results(call(case, inputs, backend="cpu"), strided, grad_output.mT.contiguous().mT)
    expected = results(call(case, inputs, backend="cpu"), inputs, grad_output)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("case", [Case(num_images=0), Case(num_queries=0)])
@pytest.mark.parametrize("form", [0, 2, 4])
def test_empty_batches_and_no_queries_give_zero_gradients(case, form):
    inputs = _inputs(case, form, torch.float32)
    output, *grads = results(
        call(case, inputs, backend="cpu"), inputs, grad_output_of(case, torch.float32)
    )
    assert output.numel() == 0
    assert [g.shape for g in grads] == [t.shape for t in inputs]
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("form", [0, 4])
def test_results_do_not_depend_on_the_number_of_threads(form):
    case = Case(num_images=1, num_queries=50)
    inputs = _inputs(case, form, torch.float32)
    grad_output = grad_output_of(case, torch.float32)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(results(call(case, inputs, backend="cpu"), inputs, grad_output))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_few_queries_read_the_values_in_place():
    # fewer gathered rows than pixels: the other branch of packing
    case = Case(num_queries=1, num_points=1, num_levels=5, head_dim=32)
    inputs = points_inputs(case, dtype=torch.float32)
    assert max(_errors(case, inputs, torch.float32)) < FLOAT32_BOUND
