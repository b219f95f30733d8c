"""The Triton kernels on a GPU: accuracy, repeatability, no host synchronisation, CUDA graphs."""

import pytest
import torch

from kernels import mask_bits, masked_cross_attention
from kernels.masked_xattn.reference import unpack_bits

pytestmark = pytest.mark.gpu


def run(problem, dtype, backend):
    q, k, v = (
        x.detach().to("cuda", dtype).requires_grad_() for x in (problem.q, problem.k, problem.v)
    )
    bits, row_any = problem.packed.bits.cuda(), problem.packed.row_any.cuda()
    out = masked_cross_attention(q, k, v, bits, row_any, backend=backend)
    return out, *torch.autograd.grad(out, (q, k, v), problem.grad_out.to("cuda", dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "sizes_bnqkd",
    [(2, 3, 7, 21, 16), (1, 2, 101, 1333, 32), (2, 2, 178, 257, 64), (1, 1, 512, 97, 128)],
)
def test_triton_is_as_accurate_as_the_reference(
    sizes_bnqkd, dtype, make_problem, assert_as_accurate
):
    share = torch.rand(sizes_bnqkd[2], 1)
    share[0] = 0.0
    may_attend = torch.rand(sizes_bnqkd[0], sizes_bnqkd[2], sizes_bnqkd[3]) < share
    problem = make_problem(sizes_bnqkd, visible=may_attend, dtype=dtype)
    found = run(problem, dtype, "triton")
    # plain arithmetic in this dtype: the reference would compute in float32
    plain, exact = run(problem, dtype, "sdpa"), run(problem, torch.float64, "reference")
    names = ("out", "grad_q", "grad_k", "grad_v")
    for name, *tensors in zip(names, found, plain, exact, strict=True):
        assert_as_accurate(*tensors, name=name)
    again = run(problem, dtype, "triton")
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))


def test_bits_of_the_gpu_are_the_signs_of_float64_logits():
    embed, features = torch.randn(2, 101, 256), torch.randn(2, 256, 33, 47)
    packed = mask_bits(embed.cuda(), features.cuda(), num_unmasked_rows=77, backend="triton")
    exact = embed.double() @ features.flatten(2).double()
    # a float32 sum of 256 products is off by at most 256 roundings of the absolute products
    bound = 256 * 2.0**-23 * (embed.abs() @ features.flatten(2).abs()).double()
    is_clear = exact.abs() > bound
    found = unpack_bits(packed.bits.cpu(), 33 * 47)
    assert torch.equal(found[:, :101][is_clear], (exact >= 0)[is_clear])
    assert found[:, 101:].all()


def test_a_layer_step_never_waits_for_the_gpu_and_replays_as_a_graph(make_problem):
    problem = make_problem((2, 3, 7, 45, 16))
    q, k, v = (x.cuda() for x in (problem.q, problem.k, problem.v))
    embed, features = torch.randn(2, 5, 8).cuda(), torch.randn(2, 8, 5, 9).cuda()

    def step():
        packed = mask_bits(embed, features, num_unmasked_rows=2)
        return masked_cross_attention(q, k, v, packed.bits, packed.row_any)

    expected = step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    step()
    torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    graph.replay()
    torch.testing.assert_close(replayed, expected)
