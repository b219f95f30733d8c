import pytest
import torch
from torch import nn

from kernels._extension import CPU_LIBRARY
from kernels.msda.api import fused_deformable_attention
from pipelines.engine.workload import forward_flops

needs_library = pytest.mark.skipif(
    not CPU_LIBRARY.is_loaded, reason=f"the C++ library is missing: {CPU_LIBRARY.why_missing}"
)


class Losses(nn.Module):
    """A stand-in for `MultiTask` that runs what it is given."""

    def __init__(self, work: object) -> None:
        super().__init__()
        self.work = work

    def forward(self, batches: object, draws: object) -> object:
        return self.work()


def test_library_products_are_counted() -> None:
    layer, inputs = nn.Linear(5, 7, bias=False), torch.ones(3, 5)
    assert forward_flops(Losses(lambda: layer(inputs)), (), 0) == 2 * 3 * 5 * 7


@needs_library
def test_our_operators_are_counted_on_compiled_kernels() -> None:
    levels, (batch, queries, heads, points, dim) = ((3, 4), (2, 5)), (2, 6, 2, 3, 4)
    value = torch.randn(batch, 22, heads, dim)
    reference = torch.rand(batch, queries, len(levels), 2)
    offsets = torch.randn(batch, queries, heads, len(levels), points, 2)
    logits = torch.randn(batch, queries, heads, len(levels), points)

    def sample() -> object:
        return fused_deformable_attention(value, levels, reference, offsets, logits, backend="cpu")

    assert forward_flops(Losses(sample), (), 0) == 10 * batch * queries * heads * 2 * points * dim


@needs_library
def test_masked_attention_counts_scores_and_values() -> None:
    batch, heads, queries, keys, dim = 2, 2, 5, 12, 8
    q, k, v = (torch.randn(batch, heads, count, dim) for count in (queries, keys, keys))
    embed, features = torch.randn(batch, queries, dim), torch.randn(batch, dim, keys)
    bits, row_any, _ = torch.ops.xdecoder.mask_bits(embed, features, 0)

    def attend() -> object:
        torch.ops.xdecoder.mask_bits(embed, features, 0)
        return torch.ops.xdecoder.masked_xattn_forward(q, k, v, bits, row_any)

    product = 2 * batch * queries * dim * keys
    attention = 4 * batch * heads * queries * keys * dim
    assert forward_flops(Losses(attend), (), 0) == product + attention
