"""Problems and implementations of the masked cross-attention benchmark.

fused     bits from resized features, packed attention (kernels)
original  full-size logits, resize, sigmoid < 0.5, one copy per head, all-hidden rows found
          on the host, nn.MultiheadAttention with its weights
sdpa      bits of resized features as one Boolean mask for all heads, SDPA: the cheapest dense way
flex      the same mask as a FlexAttention block mask, built in every call
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels import mask_bits, masked_cross_attention, resize_mask_features
from kernels.masked_xattn import MaskBits

MASKS = ("blobs", "empty30", "random50", "all_on")
# a blob covers 5 % of the image; objects are few, so that rows share them as trained ones do
_BLOB_SHARE = 0.05
_NUM_OBJECTS = 12


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one layer step; mask features are at stride 4 of the image."""

    num_images: int
    num_queries: int
    dim: int
    num_heads: int
    level_hw: tuple[int, int]
    features_hw: tuple[int, int]
    masks: str

    @property
    def name(self) -> str:
        """Text of the result files, such as q100-64x64-e256-n1-blobs."""
        size = f"{self.level_hw[0]}x{self.level_hw[1]}"
        return f"q{self.num_queries}-{size}-e{self.dim}-n{self.num_images}-{self.masks}"


class Inputs:
    """Tensors of one shape: states, memory, mask embeddings and features, and the projections."""

    def __init__(self, shape: Shape, *, dtype: torch.dtype, device: str) -> None:
        torch.manual_seed(0)
        b, q, c = shape.num_images, shape.num_queries, shape.dim
        num_keys = shape.level_hw[0] * shape.level_hw[1]
        self.shape = shape
        # orthonormal embeddings, so that the logits are exactly the maps that we want
        embed = torch.linalg.qr(torch.randn(c, q))[0].T
        maps = torch.stack([mask_maps(shape) for _ in range(b)])  # [B, Q, h4 * w4]
        self.embed = embed.expand(b, -1, -1).contiguous().to(device, dtype)
        features = embed.T @ maps  # [B, C, h4 * w4]
        self.features = features.unflatten(2, shape.features_hw).to(device, dtype)
        self.attention = nn.MultiheadAttention(c, shape.num_heads, batch_first=True)
        self.attention = self.attention.to(device, dtype)
        self.query = torch.randn(b, q, c).to(device, dtype).requires_grad_()
        self.memory = torch.randn(b, num_keys, c).to(device, dtype).requires_grad_()
        self.grad_out = torch.randn(b, q, c).to(device, dtype)
        self.resized = resize_mask_features(self.features, shape.level_hw)
        self.bits = mask_bits(self.embed, self.resized)
        self.qkv = [x.detach().requires_grad_() for x in project(self, self.query, self.memory)]


def mask_maps(shape: Shape) -> Tensor:
    """Mask logits [Q, h4 * w4] of one image whose signs are the masks asked for."""
    height, width = shape.features_hw
    if shape.masks == "random50":
        return torch.randn(shape.num_queries, height * width)
    if shape.masks == "all_on":
        return torch.ones(shape.num_queries, height * width)
    rows = torch.arange(height)[:, None] - height * torch.rand(_NUM_OBJECTS)[:, None, None]
    columns = torch.arange(width)[None, :] - width * torch.rand(_NUM_OBJECTS)[:, None, None]
    distance = rows.square() + columns.square()  # [objects, h4, w4]
    size = _BLOB_SHARE * height * width / math.pi * (0.4 + 1.2 * torch.rand(_NUM_OBJECTS))
    maps = 1 - (distance / size[:, None, None]).sqrt()
    maps = maps.flatten(1)[torch.randint(_NUM_OBJECTS, (shape.num_queries,))]
    if shape.masks == "empty30":
        maps[torch.rand(shape.num_queries) < 0.3] = -1.0
    return maps


def project(inputs: Inputs, query: Tensor, memory: Tensor) -> list[Tensor]:
    """Query, keys and values [B, N, rows, D] of the attention's own projections."""
    weights = inputs.attention.in_proj_weight.chunk(3)
    biases = inputs.attention.in_proj_bias.chunk(3)
    projected = [
        F.linear(x, weight, bias)
        for x, weight, bias in zip((query, memory, memory), weights, biases, strict=True)
    ]
    return [x.unflatten(2, (inputs.shape.num_heads, -1)).transpose(1, 2) for x in projected]


def merge(inputs: Inputs, attended: Tensor) -> Tensor:
    """The output projection of the attention's heads."""
    return inputs.attention.out_proj(attended.transpose(1, 2).flatten(2))


# --- masks -------------------------------------------------------------------------------------


def fused_mask(inputs: Inputs) -> MaskBits:
    """Packed bits of features that were resized once per image and level."""
    return mask_bits(inputs.embed, inputs.resized)


def fused_mask_with_resize(inputs: Inputs) -> MaskBits:
    """Packed bits where this call resizes the features itself (a third of the layers do)."""
    return mask_bits(inputs.embed, resize_mask_features(inputs.features, inputs.shape.level_hw))


@torch.no_grad()
def original_mask(inputs: Inputs) -> Tensor:
    """Hidden keys [B * N, Q, K] by the original route, with its look-up on the host.

    Source: the order of operations in Mask2Former's transformer decoder.
    """
    logits = torch.einsum("bqc,bchw->bqhw", inputs.embed, inputs.features)
    logits = F.interpolate(logits, inputs.shape.level_hw, mode="bilinear", align_corners=False)
    probs = logits.sigmoid().flatten(2).unsqueeze(1)  # [B, 1, Q, K]
    is_hidden = (probs.repeat(1, inputs.shape.num_heads, 1, 1).flatten(0, 1) < 0.5).bool()
    is_hidden[torch.where(is_hidden.sum(-1) == is_hidden.shape[-1])] = False
    return is_hidden


@torch.no_grad()
def dense_mask(inputs: Inputs) -> Tensor:
    """Visible keys [B, 1, Q, K] of resized features; rows without one see all."""
    may_attend = inputs.embed @ inputs.resized.flatten(2) >= 0  # [B, Q, K]
    return (may_attend | ~may_attend.any(-1, keepdim=True)).unsqueeze(1)


# --- attention ---------------------------------------------------------------------------------


def fused_attention(inputs: Inputs, q: Tensor, k: Tensor, v: Tensor, packed: MaskBits) -> Tensor:
    """Attention under packed bits."""
    return masked_cross_attention(q, k, v, packed.bits, packed.row_any)


def original_attention(inputs: Inputs, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """What nn.MultiheadAttention does between its projections when weights are wanted."""
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    bias = torch.zeros_like(hidden, dtype=q.dtype).masked_fill_(hidden, float("-inf"))
    weights = torch.baddbmm(bias, q * q.shape[-1] ** -0.5, k.transpose(1, 2)).softmax(-1)
    attended = (weights @ v).unflatten(0, (-1, inputs.shape.num_heads))
    weights.unflatten(0, (-1, inputs.shape.num_heads)).mean(1)
    return attended


def sdpa_attention(inputs: Inputs, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """SDPA under one dense mask for all heads."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex_attention(inputs: Inputs, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Compiled FlexAttention; its block mask is built here, as every layer must."""
    from torch.nn.attention.flex_attention import create_block_mask

    may_attend = visible[:, 0]

    def mask_mod(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return may_attend[b, row, key]

    block_mask = create_block_mask(
        mask_mod, q.shape[0], None, q.shape[2], k.shape[2], device=q.device
    )
    return _compiled_flex()(q, k, v, block_mask=block_mask)


MASKS_OF: dict[str, Callable[[Inputs], MaskBits | Tensor]] = {
    "fused": fused_mask,
    "original": original_mask,
    "sdpa": dense_mask,
    "flex": dense_mask,
}
ATTENTION_OF: dict[str, Callable[..., Tensor]] = {
    "fused": fused_attention,
    "original": original_attention,
    "sdpa": sdpa_attention,
    "flex": flex_attention,
}


def layer_step(name: str, inputs: Inputs, query: Tensor) -> Tensor:
    """Mask building, projections and attention of one layer: [B, Q, C]."""
    mask = MASKS_OF[name](inputs)
    if name == "original":
        attention = inputs.attention
        return attention(query, inputs.memory, inputs.memory, attn_mask=mask)[0]
    q, k, v = project(inputs, query, inputs.memory)
    return merge(inputs, ATTENTION_OF[name](inputs, q, k, v, mask))


# --- nine layers -------------------------------------------------------------------------------


class Decoder(nn.Module):
    """Nine masked layers over three levels; only the cross-attention and its mask differ.

    Masks come from the recorded embeddings, so that all implementations see the same; making the
    full-size logits of the original route without a graph favours the original.
    """

    def __init__(self, implementation: str, inputs: list[Inputs], *, num_layers: int = 9) -> None:
        super().__init__()
        self.implementation, self.inputs = implementation, inputs
        dim, heads = inputs[0].shape.dim, inputs[0].shape.num_heads
        torch.manual_seed(0)
        self.self_attention = nn.ModuleList(
            nn.MultiheadAttention(dim, heads, batch_first=True) for _ in range(num_layers)
        )
        self.ffn = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 8 * dim), nn.ReLU(), nn.Linear(8 * dim, dim))
            for _ in range(num_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3 * num_layers))
        self.to(inputs[0].query.device, inputs[0].query.dtype)

    def forward(self) -> Tensor:
        """States [B, Q, C] after the last layer."""
        states = self.inputs[0].query
        for i, (attention, ffn) in enumerate(zip(self.self_attention, self.ffn, strict=True)):
            level = self.inputs[i % len(self.inputs)]
            if self.implementation != "original" and i < len(self.inputs):
                # once per image and level, and part of what is timed
                level.resized = resize_mask_features(level.features, level.shape.level_hw)
            norms = self.norms[3 * i : 3 * i + 3]
            states = norms[0](states + layer_step(self.implementation, level, states))
            is_original = self.implementation == "original"
            seen = attention(states, states, states, need_weights=is_original)[0]
            states = norms[1](states + seen)
            states = norms[2](states + ffn(states))
        return states
