import pytest
import torch
from torch.library import opcheck

import kernels
from kernels._extension import CPU_LIBRARY
from kernels.msda.backends import Call, candidates
from tests.testing.msda_cases import (
    Case,
    call,
    fused_inputs,
    grad_output_of,
    points_inputs,
    results,
)

needs_library = pytest.mark.skipif(
    not CPU_LIBRARY.is_loaded, reason=f"the C++ library is missing: {CPU_LIBRARY.why_missing}"
)
CASE = Case(num_levels=2)
POINTS, FUSED = "multi_scale_deformable_attention", "fused_deformable_attention"


def _points_with(**changes):
    value, points, weights = (t.detach() for t in points_inputs(CASE, dtype=torch.float32))
    arguments = {"value": value, "level_sizes_hw": CASE.level_sizes_hw, "points_xy01": points}
    arguments |= {"weights": weights, **changes}
    return kernels.multi_scale_deformable_attention(**arguments)


def _fused_with(**changes):
    tensors = [t.detach() for t in fused_inputs(CASE, coordinates=2, dtype=torch.float32)]
    arguments = dict(zip(("value", "reference", "offsets", "logits"), tensors, strict=True))
    arguments |= {"level_sizes_hw": CASE.level_sizes_hw, **changes}
    return kernels.fused_deformable_attention(**arguments)


def _call_on(device, dtype=torch.float32, **changes):
    sizes = {"num_pixels": 40, "num_heads": 3, "head_dim": 8, "num_levels": 2, "num_points": 4}
    flags = {"is_deterministic": False, **sizes, **changes}
    return Call(device=torch.device(device), dtype=dtype, **flags)


def _why_not(name, request):
    return {one.name: one.why_not for one in candidates(request)}[name]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weights": torch.rand(2, 9, 3, 10)}, ValueError, r"weights must be \[B, Q, N, L, P\], 5"),
        (
            {"weights": torch.rand(2, 9, 3, 2, 4)},
            ValueError,
            r"weights must be \[B, Q, N, L, P\] = \[2, 9, 3, 2, 5\]; got \[2, 9, 3, 2, 4\]",
        ),
        (
            {"points_xy01": torch.rand(2, 9, 3, 2, 5, 3)},
            ValueError,
            r"points_xy01 must be \[B, Q, N, L, P, 2\] = \[2, 9, 3, 2, 5, 2\]; got",
        ),
        (
            {"points_xy01": torch.rand(2, 9, 3, 2, 0, 2)},
            ValueError,
            r"points_xy01 must have P >= 1 points per level",
        ),
        (
            {"value": torch.rand(2, 46, 3, 8)},
            ValueError,
            r"value must have S = 47 pixels, the sum of H \* W over level_sizes_hw .* got 46",
        ),
        ({"value": torch.rand(2, 47, 24)}, ValueError, r"value must be \[B, S, N, D\], 4 dim"),
        ({"value": torch.rand(2, 47, 3, 0)}, ValueError, r"N >= 1 heads of D >= 1 channels"),
        ({"level_sizes_hw": ()}, ValueError, r"level_sizes_hw must be one \(height, width\)"),
        ({"level_sizes_hw": ((5, 7), (0, 4))}, ValueError, r">= \(1, 1\) per level"),
        (
            {"value": torch.ones(2, 47, 3, 8, dtype=torch.int64)},
            TypeError,
            r"value must be float32, float64, bfloat16, float16; got int64",
        ),
        (
            {"weights": torch.rand(2, 9, 3, 2, 5).double()},
            TypeError,
            r"weights must be float32, bfloat16, float16; got float64",
        ),
        (
            {"weights": torch.rand(2, 9, 3, 2, 5, device="meta")},
            ValueError,
            r"weights must be on the device of value, cpu; got meta. Move it with \.to\('cpu'\)",
        ),
        ({"backend": "opencl"}, ValueError, r"backend must be None or one of \['cpu', 'cuda'"),
        (
            {"backend": "cuda"},
            kernels.BackendUnavailable,
            r"backend 'cuda' cannot run this call: the tensors are on cpu, not on a GPU",
        ),
    ],
)
def test_wrong_arguments_of_the_points_form_are_named(changes, error, message):
    with pytest.raises(error, match=f"{POINTS}: .*{message}"):
        _points_with(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reference": torch.rand(2, 9, 2, 3)},
            r"reference must be \[B, Q, L, 2 or 4\] = \[2, 9, 2, 2\]; got \[2, 9, 2, 3\]",
        ),
        ({"offsets": torch.rand(2, 9, 3, 2, 5)}, r"offsets must be \[B, Q, N, L, P, 2\], 6"),
        ({"offsets": torch.rand(2, 9, 3, 2, 0, 2)}, r"offsets must have P >= 1 points per level"),
        ({"logits": torch.rand(2, 8, 3, 2, 5)}, r"logits must be .* = \[2, 9, 3, 2, 5\]; got"),
    ],
)
def test_wrong_arguments_of_the_fused_form_are_named(changes, message):
    with pytest.raises(ValueError, match=f"{FUSED}: {message}"):
        _fused_with(**changes)


@needs_library
@pytest.mark.parametrize("form", [0, 2, 4])
def test_both_forms_agree(form):
    # one problem said in two ways: points and weights follow from offsets and logits
    case = Case(num_queries=7)
    fused = fused_inputs(case, coordinates=form or 2, dtype=torch.float64)
    value, reference, offsets, logits = (t.detach() for t in fused)
    from kernels.msda.reference import sampling_points

    points = sampling_points(case.level_sizes_hw, reference, offsets)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    one = call(case, fused, backend="cpu")(value, reference, offsets, logits)
    other = call(case, fused[:3], backend="cpu")(value, points, weights)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@needs_library
def test_constant_images_give_the_sum_of_the_weights_inside():
    value = torch.full((2, 6, 1, 4), 3.0)
    points = torch.full((2, 5, 1, 1, 3, 2), 0.5)
    weights = torch.rand(2, 5, 1, 1, 3)
    found = kernels.multi_scale_deformable_attention(value, [(2, 3)], points, weights)
    torch.testing.assert_close(found, 3 * weights.sum((2, 3, 4))[..., None].expand(2, 5, 4))


@needs_library
def test_permuting_the_queries_permutes_the_output():
    case = Case(num_queries=33)
    inputs = [t.detach() for t in points_inputs(case, dtype=torch.float32)]
    order = torch.randperm(33)
    run = call(case, inputs, backend="cpu")
    permuted = run(inputs[0], inputs[1][:, order], inputs[2][:, order])
    assert torch.equal(permuted, run(*inputs)[:, order])


@needs_library
@pytest.mark.parametrize("form", [0, 2, 4])
def test_operators_keep_the_promises_of_their_schemas(form):
    case = Case(num_images=1, num_queries=4, num_heads=2, num_levels=3, num_points=1)
    flat = [size for level in case.level_sizes_hw for size in level]
    if form == 0:
        value, *rest = points_inputs(case, dtype=torch.float32)
        operator = torch.ops.xdecoder.msda_forward.default
    else:
        value, *rest = fused_inputs(case, coordinates=form, dtype=torch.float32)
        operator = torch.ops.xdecoder.msda_fused_forward.default
    outcome = opcheck(operator, (value, flat, *rest))
    assert set(outcome.values()) == {"SUCCESS"}


@needs_library
@pytest.mark.parametrize("form", [0, 4])
def test_compiles_into_one_graph_with_gradients(form):
    make = (lambda c: points_inputs(c, dtype=torch.float32)) if form == 0 else (
        lambda c: fused_inputs(c, coordinates=form, dtype=torch.float32)
    )  # fmt: skip
    inputs = make(CASE)
    run = call(CASE, inputs, backend=None)
    grad_output = grad_output_of(CASE, torch.float32)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found = results(compiled, inputs, grad_output)
    expected = results(run, inputs, grad_output)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


class _Attention(torch.nn.Module):
    def forward(self, value, points_xy01, weights):
        levels = CASE.level_sizes_hw
        return kernels.multi_scale_deformable_attention(value, levels, points_xy01, weights)


@needs_library
def test_exports_with_any_number_of_queries():
    inputs = tuple(t.detach() for t in points_inputs(CASE, dtype=torch.float32))
    queries = torch.export.Dim("queries", min=2, max=4096)
    program = torch.export.export(
        _Attention(), inputs, dynamic_shapes=({}, {1: queries}, {1: queries})
    )
    more = Case(num_queries=21, num_levels=2)
    others = [t.detach() for t in points_inputs(more, dtype=torch.float32)]
    assert torch.equal(program.module()(*others), _Attention()(*others))


@needs_library
def test_runs_inside_autocast_with_values_of_a_linear_layer():
    case = Case(num_images=1, num_heads=2, num_levels=2)
    _, points, weights = points_inputs(case, dtype=torch.float32)
    source = torch.randn(1, case.num_pixels, 16, requires_grad=True)
    linear = torch.nn.Linear(16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = linear(source).unflatten(-1, (2, 8))
        output = call(case, [value, points, weights], backend="cpu")(value, points, weights)
    output.float().sum().backward()
    assert (value.dtype, output.dtype) == (torch.bfloat16, torch.bfloat16)
    assert points.grad.dtype == torch.float32
    assert source.grad.abs().sum() > 0


@needs_library
def test_sixteen_bit_offsets_get_gradients_in_their_type():
    tensors = [t.detach() for t in fused_inputs(CASE, coordinates=2, dtype=torch.bfloat16)]
    value, reference, offsets, logits = tensors
    leaves = [value, reference, offsets.bfloat16(), logits.bfloat16()]
    leaves = [t.requires_grad_() for t in leaves]
    call(CASE, leaves, backend="cpu")(*leaves).sum().backward()
    assert [t.grad.dtype for t in leaves] == [t.dtype for t in leaves]


@pytest.mark.parametrize(
    ("name", "request_", "reason"),
    [
        ("cpu", _call_on("cuda"), "the tensors are on cuda"),
        ("cpu", _call_on("cpu", num_pixels=2**27), r"below 2\^31"),
        ("cuda", _call_on("cuda", torch.float64), "float64 runs on backend 'reference'"),
        ("cuda", _call_on("cuda", head_dim=6), "D must be a multiple of 4"),
        ("cuda", _call_on("cuda", torch.bfloat16, head_dim=12), "D must be a multiple of 8"),
        ("cuda", _call_on("cuda", num_levels=9), "L must be at most 8"),
        ("cuda", _call_on("cuda", num_pixels=2**27), r"below 2\^31"),
        ("triton", _call_on("cpu"), "the tensors are on cpu"),
        ("triton", _call_on("cuda", torch.float64), "float64 runs on backend 'reference'"),
        ("triton", _call_on("cuda", head_dim=300), "D must be at most 256"),
        ("triton", _call_on("cuda", num_pixels=2**27), r"below 2\^31"),
        ("triton", _call_on("cuda", is_deterministic=True), "adds with atomics"),
    ],
)
def test_each_backend_says_why_it_cannot_run(name, request_, reason):
    import re

    assert re.search(reason, _why_not(name, request_))


def test_the_reference_runs_everything():
    assert _why_not("reference", _call_on("cuda", torch.float64, head_dim=7)) is None
