import torch
from torch import nn

from kernels.masked_xattn import pack_mask_bits
from xdecoder.layers import DeformableAttention, MaskedCrossAttention, SelfAttention


def _as_multihead(ours, dim, num_heads):
    peer = nn.MultiheadAttention(dim, num_heads, batch_first=True)
    peer.load_state_dict(
        {
            "in_proj_weight": ours.in_proj.weight,
            "in_proj_bias": ours.in_proj.bias,
            "out_proj.weight": ours.out_proj.weight,
            "out_proj.bias": ours.out_proj.bias,
        }
    )
    return peer


def test_self_attention_is_torchs_with_positions_on_queries_and_keys():
    ours = SelfAttention(12, num_heads=3)
    peer = _as_multihead(ours, 12, 3)
    x, positions = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    may_attend = torch.rand(5, 5) > 0.4
    may_attend.fill_diagonal_(True)
    query = x + positions
    expected = peer(query, query, x, attn_mask=~may_attend, need_weights=False)[0]
    torch.testing.assert_close(ours(x, positions, may_attend[None, None]), expected)


def test_cross_attention_is_torchs_with_positions_on_keys():
    ours = MaskedCrossAttention(12, num_heads=3)
    peer = _as_multihead(ours, 12, 3)
    query, memory, positions = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(1, 7, 12)
    may_attend = torch.rand(2, 5, 7) > 0.4
    may_attend[:, :, 0] = True
    is_blocked = ~may_attend.repeat_interleave(3, dim=0)
    expected = peer(query, memory + positions, memory, attn_mask=is_blocked, need_weights=False)[0]
    torch.testing.assert_close(ours(query, memory, positions, pack_mask_bits(may_attend)), expected)


def test_deformable_attention_starts_with_rings_of_samples():
    module = DeformableAttention(16, num_heads=4, num_levels=3, num_points=2)
    offsets_xy = module.sampling_offsets.bias.detach().view(4, 3, 2, 2)
    right, down = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for level in range(3):
        torch.testing.assert_close(offsets_xy[0, level], torch.stack([right, 2 * right]))
        torch.testing.assert_close(offsets_xy[1, level], torch.stack([down, 2 * down]))
