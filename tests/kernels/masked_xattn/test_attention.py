"""Attention under packed bits: values, gradients, hostile inputs, determinism, composition."""

import pytest
import torch

from kernels import BackendUnavailable, mask_bits, masked_cross_attention
from kernels.masked_xattn.reference import masked_cross_attention_reference

FUSED = ("cpu", "sdpa")
# images, heads, queries, keys, head dim; keys are no multiple of a word, a vector or a tile
SIZES = [(2, 3, 7, 21, 16), (1, 2, 9, 130, 20), (1, 2, 101, 333, 32), (2, 1, 13, 257, 64),
         (1, 3, 6, 97, 100), (1, 1, 5, 197, 128), (3, 2, 1, 3, 5)]  # fmt: skip


def run(problem, backend):
    out = masked_cross_attention(
        problem.q, problem.k, problem.v, problem.packed.bits, problem.packed.row_any,
        backend=backend,
    )  # fmt: skip
    return out, *torch.autograd.grad(out, (problem.q, problem.k, problem.v), problem.grad_out)


def check(problem, backend, assert_as_accurate):
    dtype = problem.q.dtype
    found = run(problem.to(dtype), backend)
    same_dtype, exact = (run(problem.to(d), "reference") for d in (dtype, torch.float64))
    names = ("out", "grad_q", "grad_k", "grad_v")
    for name, *tensors in zip(names, found, same_dtype, exact, strict=True):
        assert_as_accurate(*tensors, name=name)


@pytest.mark.parametrize("visible", [0.02, 0.2, 0.6])
@pytest.mark.parametrize("sizes_bnqkd", SIZES)
def test_cpu_kernels_are_as_accurate_as_the_reference(
    sizes_bnqkd, visible, make_problem, assert_as_accurate, nan_outputs
):
    check(make_problem(sizes_bnqkd, visible=visible), "cpu", assert_as_accurate)


def test_sdpa_is_as_accurate_as_the_reference(make_problem, assert_as_accurate):
    check(make_problem((2, 3, 7, 21, 16)), "sdpa", assert_as_accurate)


@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_kernels_of_every_instruction_set_agree_with_the_reference(isa, run_script):
    script = """
import torch
from kernels import masked_cross_attention, mask_bits
torch.manual_seed(0)
q, k, v = (torch.randn(1, 2, n, 20, requires_grad=True) for n in (23, 203, 203))
packed = mask_bits(torch.randn(1, 23, 8), torch.randn(1, 8, 203) + 0.8)
expected = mask_bits(torch.zeros(1, 3, 8), torch.zeros(1, 8, 203), backend="reference")
assert torch.equal(mask_bits(torch.zeros(1, 3, 8), torch.zeros(1, 8, 203)).bits, expected.bits)
packed.bits[0, 3] = 0
packed.row_any[0, 3] = False
packed.bits[0, 5:9, 1:] = 0
results = []
for backend in ("cpu", "reference"):
    out = masked_cross_attention(q, k, v, packed.bits, packed.row_any, backend=backend)
    results.append((out, *torch.autograd.grad(out.cos().sum(), (q, k, v))))
for found, exact in zip(*results):
    print(((found - exact).abs().max() / exact.abs().max()).item())
"""
    errors = [float(line) for line in run_script(script, MASKED_XATTN_ISA=isa).split()]
    assert len(errors) == 4
    # float32 sums of about 200 terms, in another order
    assert max(errors) < 200 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("backend", FUSED)
def test_rows_without_a_visible_key_attend_everywhere(backend, make_problem, assert_as_accurate):
    hidden = make_problem((2, 3, 6, 41, 16), visible=torch.zeros(2, 6, 41, dtype=torch.bool))
    check(hidden, backend, assert_as_accurate)
    everything = make_problem((2, 3, 6, 41, 16), visible=torch.ones(2, 6, 41, dtype=torch.bool))
    out = masked_cross_attention(
        hidden.q, hidden.k, hidden.v, everything.packed.bits, everything.packed.row_any
    )
    torch.testing.assert_close(out, run(hidden.to(torch.float32), backend)[0])


@pytest.mark.parametrize("backend", FUSED)
def test_a_single_key_gives_its_value_whatever_the_mask(backend, make_problem):
    problem = make_problem((2, 3, 4, 1, 20), visible=0.5).to(torch.float32)
    out, grad_q, grad_k, grad_v = run(problem, backend)
    torch.testing.assert_close(out, problem.v.expand_as(out))
    torch.testing.assert_close(grad_v, problem.grad_out.sum(2, keepdim=True))
    # <grad_out, v> - <grad_out, out> cancels up to the rounding of two sums of 20 terms
    grad_score = 2 * 20 * torch.finfo(torch.float32).eps * problem.grad_out.abs().max()
    bound = grad_score * problem.v.abs().max() * 20**-0.5
    assert grad_q.abs().max() <= bound * problem.k.abs().max()
    assert grad_k.abs().max() <= bound * problem.q.abs().max() * 4


@pytest.mark.parametrize("backend", FUSED)
def test_empty_rows_sparse_rows_and_dense_rows_mix(backend, make_problem, assert_as_accurate):
    share = torch.tensor([0.0, 0.02, 0.9, 1.0, 0.1, 0.0, 0.5, 0.03, 0.7])
    may_attend = torch.rand(2, 9, 211) < share[:, None]
    check(make_problem((2, 3, 9, 211, 24), visible=may_attend), backend, assert_as_accurate)


@pytest.mark.parametrize("visible", [0.1, 0.5])
def test_hidden_keys_change_nothing_and_get_no_gradient(visible, make_problem):
    may_attend = torch.rand(1, 5, 150) < visible
    may_attend[:, :, 70:140] = False
    problem = make_problem((1, 2, 5, 150, 32), visible=may_attend).to(torch.float32)
    before = run(problem, "cpu")
    with torch.no_grad():
        problem.k[:, :, 70:140] = 1e4 * torch.randn(1, 2, 70, 32)
        problem.v[:, :, 70:140] = -1e4
    after = run(problem, "cpu")
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert not before[2][:, :, 70:140].any()
    assert not before[3][:, :, 70:140].any()


def test_a_list_of_keys_never_touches_nan_in_hidden_ones(make_problem):
    may_attend = torch.rand(1, 5, 150) < 0.1
    may_attend[:, :, :8] = False
    problem = make_problem((1, 2, 5, 150, 32), visible=may_attend)
    problem.k[:, :, :8] = float("nan")
    problem.v[:, :, :8] = float("nan")
    assert all(x.isfinite().all() for x in run(problem.to(torch.float32), "cpu"))


def test_nan_in_a_query_stays_in_its_row(make_problem):
    problem = make_problem((1, 2, 9, 150, 32), visible=0.4)
    problem.q[0, 1, 3, 5] = float("nan")
    out = run(problem.to(torch.float32), "cpu")[0]
    assert out[0, 1, 3].isnan().all()
    assert out.isnan().sum() == 32


def test_large_scores_do_not_overflow(make_problem):
    problem = make_problem((1, 2, 9, 150, 32), visible=0.4)
    problem.q.mul_(300.0)
    found = run(problem.to(torch.float32), "cpu")
    exact = run(problem.to(torch.float64), "reference")
    # scores and log-sum-exp are rounded at their own size, which the exponential makes relative
    scores = (problem.q @ problem.k.transpose(2, 3)) * 32**-0.5
    eps = torch.finfo(torch.float32).eps
    rounding = 4 * eps * scores.abs().max().item()
    assert scores.abs().max() > 500
    # <grad_out, v> - <grad_out, out> of nearly one-hot rows cancels up to two sums of 32 terms
    largest = [x.abs().max().item() for x in (problem.grad_out, problem.v, problem.k, problem.q)]
    grad_score = 2 * 32 * eps * largest[0] * largest[1] * 32**-0.5
    cancelled = (0.0, grad_score * largest[2], grad_score * largest[3], 0.0)
    for x, y, slack in zip(found, exact, cancelled, strict=True):
        atol = rounding * y.abs().max().item() + slack
        torch.testing.assert_close(x.double(), y, rtol=0.0, atol=atol)


@pytest.mark.parametrize(("num_images", "num_queries"), [(0, 3), (2, 0)])
def test_no_images_or_no_queries_give_empty_results(num_images, num_queries, make_problem):
    problem = make_problem((num_images, 2, num_queries, 37, 16)).to(torch.float32)
    out, grad_q, grad_k, grad_v = run(problem, "cpu")
    assert out.shape == grad_q.shape == problem.q.shape
    assert not grad_k.any()
    assert not grad_v.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_are_as_accurate_as_the_reference(dtype, make_problem, assert_as_accurate):
    check(make_problem((2, 3, 7, 133, 32), dtype=dtype), "cpu", assert_as_accurate)


@pytest.mark.parametrize("visible", [0.05, 0.5])
def test_results_repeat_bit_for_bit_on_any_number_of_threads(visible, make_problem):
    problem = make_problem((2, 3, 30, 700, 32), visible=visible).to(torch.float32)
    first = run(problem, "cpu")
    torch.set_num_threads(2)
    again = run(problem, "cpu")
    torch.set_num_threads(1)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_permuting_queries_permutes_the_result(make_problem):
    problem = make_problem((1, 2, 9, 150, 32), visible=0.3)
    order = torch.randperm(9)
    bits, row_any = problem.packed.bits, problem.packed.row_any
    out = masked_cross_attention(problem.q, problem.k, problem.v, bits, row_any)
    permuted = masked_cross_attention(
        problem.q[:, :, order], problem.k, problem.v, bits[:, order], row_any[:, order]
    )
    torch.testing.assert_close(permuted, out[:, :, order])


def test_constant_values_come_back_unchanged(make_problem):
    problem = make_problem((1, 2, 9, 150, 32), visible=0.3)
    out = masked_cross_attention(
        problem.q, problem.k, torch.full_like(problem.v, 0.75),
        problem.packed.bits, problem.packed.row_any,
    )  # fmt: skip
    torch.testing.assert_close(out, torch.full_like(out, 0.75))


def test_the_reference_passes_gradcheck(make_problem):
    problem = make_problem((1, 2, 3, 11, 4), visible=0.5).to(torch.float64)
    bits, row_any = problem.packed.bits, problem.packed.row_any
    row_any[0, 1] = False
    assert torch.autograd.gradcheck(
        lambda q, k, v: masked_cross_attention_reference(q, k, v, bits, row_any),
        (problem.q, problem.k, problem.v),
    )


def test_float64_runs_on_the_reference(make_problem):
    problem = make_problem((1, 2, 3, 11, 4)).to(torch.float64)
    bits, row_any = problem.packed.bits, problem.packed.row_any
    out = masked_cross_attention(problem.q, problem.k, problem.v, bits, row_any)
    exact = masked_cross_attention_reference(problem.q, problem.k, problem.v, bits, row_any)
    assert torch.equal(out, exact)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_operators_pass_opcheck(requires_grad, make_problem):
    problem = make_problem((2, 3, 7, 45, 16))
    operands = [x.detach().requires_grad_(requires_grad) for x in (problem.q, problem.k, problem.v)]
    ops = torch.ops.xdecoder
    args = (*operands, problem.packed.bits, problem.packed.row_any)
    torch.library.opcheck(ops.masked_xattn_forward, args)
    torch.library.opcheck(ops.mask_bits, (torch.randn(2, 5, 8), torch.randn(2, 8, 21), 3))
    if not requires_grad:
        out, lse = ops.masked_xattn_forward(*args)
        backward_args = (problem.grad_out, *operands, out, lse, *args[3:])
        torch.library.opcheck(ops.masked_xattn_backward, backward_args)


def test_a_layer_step_compiles_to_one_graph_with_the_same_result(make_problem):
    problem = make_problem((2, 3, 7, 45, 16)).to(torch.float32)
    embed, features = torch.randn(2, 5, 8), torch.randn(2, 8, 5, 9)

    def step(q, k, v, embed, features):
        packed = mask_bits(embed, features, num_unmasked_rows=2).with_unmasked_row(1)
        return masked_cross_attention(q, k, v, packed.bits, packed.row_any)

    args = (problem.q, problem.k, problem.v, embed, features)
    eager, compiled = step(*args), torch.compile(step, fullgraph=True)(*args)
    torch.testing.assert_close(compiled, eager)
    grads = [torch.autograd.grad(out, args[:3], problem.grad_out) for out in (eager, compiled)]
    torch.testing.assert_close(grads[0], grads[1])


def test_attention_exports_with_any_number_of_keys(make_problem):
    class Attend(torch.nn.Module):
        def forward(self, q, k, v, bits, row_any):
            return masked_cross_attention(q, k, v, bits, row_any)

    small, large = (make_problem((2, 3, 7, keys, 16)) for keys in (64, 128))
    args = [(p.q, p.k, p.v, p.packed.bits, p.packed.row_any) for p in (small, large)]
    words = torch.export.Dim("words", min=2, max=512)
    keys = {2: 32 * words}
    exported = torch.export.export(
        Attend(), args[0], dynamic_shapes=(None, keys, keys, {2: words}, None)
    )
    torch.testing.assert_close(exported.module()(*args[1]), masked_cross_attention(*args[1]))


@pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference"])
def test_autocast_casts_operands_to_its_dtype(backend, make_problem):
    problem = make_problem((2, 3, 7, 45, 16))
    bits, row_any = problem.packed.bits, problem.packed.row_any
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = masked_cross_attention(
            problem.q, problem.k.bfloat16(), problem.v, bits, row_any, backend=backend
        )
    assert out.dtype == torch.bfloat16
    rounded = problem.to(torch.bfloat16)
    exact = masked_cross_attention(rounded.q, rounded.k, rounded.v, bits, row_any).detach()
    # the backends round the weights at different places: 2^-8 each
    torch.testing.assert_close(out, exact, rtol=0.0, atol=2**-7 * exact.abs().max().item())


def test_a_stretched_gradient_is_accepted(make_problem):
    problem = make_problem((1, 2, 5, 45, 16)).to(torch.float32)
    bits, row_any = problem.packed.bits, problem.packed.row_any
    results = []
    for backend in ("cpu", "reference"):
        out = masked_cross_attention(
            problem.q, problem.k, problem.v, bits, row_any, backend=backend
        )
        results.append(torch.autograd.grad(out.sum(), (problem.q, problem.k, problem.v)))
    torch.testing.assert_close(*results)


def test_wrong_arguments_are_named(make_problem):
    p = make_problem((2, 3, 7, 45, 16))
    bits, row_any = p.packed.bits, p.packed.row_any
    with pytest.raises(ValueError, match=r"q must be \[B, N, Q, D\].*\[2, 3, 16, 7\]"):
        masked_cross_attention(p.q.transpose(2, 3), p.k, p.v, bits, row_any)
    with pytest.raises(ValueError, match="k and v must hold at least one key"):
        masked_cross_attention(p.q, p.k[:, :, :0], p.v[:, :, :0], bits, row_any)
    with pytest.raises(TypeError, match="k must be float32; got bfloat16"):
        masked_cross_attention(p.q, p.k.bfloat16(), p.v, bits, row_any)
    with pytest.raises(TypeError, match="q must be float32"):
        masked_cross_attention(p.q.long(), p.k.long(), p.v.long(), bits, row_any)
    with pytest.raises(TypeError, match="bits must be int32; got bool"):
        masked_cross_attention(p.q, p.k, p.v, bits.bool(), row_any)
    with pytest.raises(ValueError, match=r"bits must be \[B, Q, ceil\(K/32\)\] = \[2, 7, 2\]"):
        masked_cross_attention(p.q, p.k, p.v, bits[..., :1], row_any)
    with pytest.raises(ValueError, match=r"row_any must be \[B, Q\] = \[2, 7\]; got \[2, 6\]"):
        masked_cross_attention(p.q, p.k, p.v, bits, row_any[:, :6])
    with pytest.raises(ValueError, match="v must be on the device of q"):
        masked_cross_attention(p.q, p.k, p.v.to("meta"), bits, row_any)
    with pytest.raises(ValueError, match="backend must be None or one of"):
        masked_cross_attention(p.q, p.k, p.v, bits, row_any, backend="flash")
    with pytest.raises(BackendUnavailable, match="the dtype is float64"):
        masked_cross_attention(
            p.q.double(), p.k.double(), p.v.double(), bits, row_any, backend="cpu"
        )
    wide = make_problem((1, 1, 2, 3, 130))
    with pytest.raises(BackendUnavailable, match=r"the head dim must be in 1\.\.128; got 130"):
        masked_cross_attention(
            wide.q, wide.k, wide.v, wide.packed.bits, wide.packed.row_any, backend="cpu"
        )
