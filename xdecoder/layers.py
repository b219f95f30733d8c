"""The parts that encoders and decoders share: attention, feed-forward, positions."""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.masked_xattn import MaskBits, masked_cross_attention
from kernels.msda import fused_deformable_attention


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, N, S, D] from [B, S, C]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B, N, S, D]


def merge_heads(x: Tensor) -> Tensor:
    """[B, S, C] from [B, N, S, D]."""
    return x.transpose(1, 2).flatten(2)  # [B, S, C]


class SelfAttention(nn.Module):
    """Multi-head attention among rows; positions enter queries and keys, not values."""

    def __init__(self, dim: int, *, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        _reset_attention(self.in_proj, self.out_proj)

    def forward(
        self,
        x: Float[Tensor, "b s c"],
        positions: Float[Tensor, "#b s c"] | None = None,
        may_attend: Bool[Tensor, "#b 1 s s"] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "b s c"]:
        return self.attend(*self.project(x, positions), may_attend=may_attend, is_causal=is_causal)

    def project(
        self, x: Float[Tensor, "b s c"], positions: Float[Tensor, "#b s c"] | None = None
    ) -> tuple[
        Float[Tensor, "b n s d"],
        Float[Tensor, "b n s d"],
        Float[Tensor, "b n s d"],
    ]:
        """Queries, keys and values by head."""
        if positions is None:
            query, key, value = self.in_proj(x).chunk(3, dim=-1)
        else:
            dim = x.shape[-1]
            weight, bias = self.in_proj.weight, self.in_proj.bias
            query_key = F.linear(x + positions, weight[: 2 * dim], bias[: 2 * dim])
            query, key = query_key.chunk(2, dim=-1)
            value = F.linear(x, weight[2 * dim :], bias[2 * dim :])
        query, key, value = (split_heads(part, self.num_heads) for part in (query, key, value))
        return query, key, value

    def attend(
        self,
        query: Float[Tensor, "b n q d"],
        key: Float[Tensor, "b n s d"],
        value: Float[Tensor, "b n s d"],
        *,
        may_attend: Bool[Tensor, "#b 1 q s"] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "b q c"]:
        """What rows take from others, of which keys and values may be kept from earlier."""
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=may_attend,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
        )
        return self.out_proj(merge_heads(attended))


class MaskedCrossAttention(nn.Module):
    """Multi-head attention from rows to the places of a map that their bits allow.

    Without bits (None) every row looks everywhere. dropout: of attention without bits only.
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        _reset_attention(self.in_proj, self.out_proj)

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        memory: Float[Tensor, "b k c"],
        memory_positions: Float[Tensor, "#b k c"],
        may_attend: MaskBits | None,
    ) -> Float[Tensor, "b q c"]:
        q = self.project_rows(query)
        k, v = self.project_memory(memory, memory_positions)
        if may_attend is None:
            dropout = self.dropout if self.training else 0.0
            attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        else:
            attended = masked_cross_attention(q, k, v, may_attend.bits, may_attend.row_any)
        return self.out_proj(merge_heads(attended))

    def project_rows(self, rows: Float[Tensor, "b q c"]) -> Float[Tensor, "b n q d"]:
        """Queries by head."""
        dim = rows.shape[-1]
        query = F.linear(rows, self.in_proj.weight[:dim], self.in_proj.bias[:dim])
        return split_heads(query, self.num_heads)

    def project_memory(
        self, memory: Float[Tensor, "b k c"], positions: Float[Tensor, "#b k c"]
    ) -> tuple[Float[Tensor, "b n k d"], Float[Tensor, "b n k d"]]:
        """Keys and values by head."""
        weight, bias = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        key = F.linear(memory + positions, weight[1], bias[1])
        value = F.linear(memory, weight[2], bias[2])
        return split_heads(key, self.num_heads), split_heads(value, self.num_heads)


class DeformableAttention(nn.Module):
    """Attention of each place to a few learned sample points on every level."""

    def __init__(self, dim: int, *, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.shape = (num_heads, num_levels, num_points)
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._reset()

    def _reset(self) -> None:
        """Start with rings: head h looks in direction 2 pi h / N, point p at p + 1 pixels.

        Source: fundamentalvision/Deformable-DETR, models/ops/modules/ms_deform_attn.py.
        """
        num_heads, _, num_points = self.shape
        angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
        direction_xy = torch.stack([angle.cos(), angle.sin()], -1)  # [N, 2]
        direction_xy /= direction_xy.abs().max(-1, keepdim=True).values
        distance = torch.arange(1, num_points + 1).view(1, 1, num_points, 1)
        offsets = direction_xy.view(num_heads, 1, 1, 2) * distance  # [N, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(offsets.expand(*self.shape, 2).flatten())
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        value: Float[Tensor, "b s c"],
        level_sizes_hw: Sequence[tuple[int, int]],
        reference: Float[Tensor, "b q l xy"],
    ) -> Float[Tensor, "b q c"]:
        offsets = self.sampling_offsets(query).unflatten(-1, (*self.shape, 2))  # [B, Q, N, L, P, 2]
        logits = self.attention_weights(query).unflatten(-1, self.shape)  # [B, Q, N, L, P]
        values = self.value_proj(value).unflatten(-1, (self.shape[0], -1))  # [B, S, N, D]
        sampled = fused_deformable_attention(values, level_sizes_hw, reference, offsets, logits)
        return self.output_proj(sampled)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between, and dropout after it."""

    def __init__(self, dim: int, *, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "*rows c"]) -> Float[Tensor, "*rows c"]:
        return self.linear2(self.drop(F.relu(self.linear1(x))))


class MLP(nn.Module):
    """Linear layers with a ReLU between each two."""

    def __init__(self, dim: int, *, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in itertools.pairwise(dims)
        )

    def forward(self, x: Float[Tensor, "*rows c"]) -> Float[Tensor, "*rows o"]:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def sine_positions(
    size_hw: tuple[int, int], dim: int, *, like: Tensor | None = None
) -> Float[Tensor, "1 s c"]:
    """Sine and cosine positions of a map's pixels, row by row; y fills the first half of `dim`.

    Device and dtype are those of `like`; the arithmetic is at least float32.
    Source: Mask2Former, modeling/transformer_decoder/position_encoding.py with normalize=True:
    2 pi i / (n + 1e-6) for i = 1..n.
    """
    like = torch.empty(0) if like is None else like
    device, dtype = like.device, torch.promote_types(like.dtype, torch.float32)
    half = dim // 2
    index = torch.arange(half, device=device, dtype=dtype)
    wavelength = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)  # [C/2]
    encoded = []
    for length in size_hw:
        place = torch.arange(1, length + 1, device=device, dtype=dtype)
        angle = (place / (length + 1e-6) * 2 * math.pi)[:, None] / wavelength  # [n, C/2]
        # even channels sine, odd channels cosine
        pair = torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], -1)
        encoded.append(pair.flatten(1))  # [n, C/2]
    rows, columns = encoded
    height, width = size_hw
    grid = torch.cat(
        [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], -1
    )
    return grid.flatten(0, 1)[None].to(like.dtype)  # [1, H*W, C]


def shrink(*branch_ends: nn.Linear, factor: float) -> None:
    """Scale the last layer of residual branches, so that rows at first keep what they entered with.

    Without it, what all rows read from the image drowns what tells them apart, and captions stay
    at the frequencies of words for hundreds of steps.
    """
    with torch.no_grad():
        for linear in branch_ends:
            linear.weight *= factor


def _reset_attention(in_proj: nn.Linear, out_proj: nn.Linear) -> None:
    for weight in (*in_proj.weight.chunk(3), out_proj.weight):
        nn.init.xavier_uniform_(weight)
    nn.init.zeros_(in_proj.bias)
    nn.init.zeros_(out_proj.bias)
