"""Swin as MaskFormer, Mask2Former and OpenSeeD use it.

Source: arXiv 2103.14030; facebookresearch/Mask2Former, mask2former/modeling/backbone/swin.py.
timm's Swin differs where windows do not fill a map: it pads after the shift, not before.
Between layers, maps are [B, H, W, C].
"""

from collections.abc import Sequence
from itertools import islice

import torch
from jaxtyping import Float, Int
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xdecoder.backbones import drop_path_rates

_PATCH_SIZE = 4
# Source: swin.py, BasicLayer.forward; added to logits of pairs that the shift brought together
_APART = -100.0


class SwinBackbone(nn.Module):
    """Maps of images of any size at strides 4, 8, 16, 32, each normalised on its way out.

    Images, windows and maps of odd size are padded right and bottom with zeros. drop_path:
    probability at the last block, growing linearly from zero. has_checkpointing: in training,
    blocks run again in the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        dim: int,
        *,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        has_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.out_dims = (dim, 2 * dim, 4 * dim, 8 * dim)
        self.embeddings = nn.ModuleList(
            [PatchEmbedding(dim), *(PatchMerging(width) for width in self.out_dims[:-1])]
        )
        rates = iter(drop_path_rates(sum(depths), last=drop_path))
        self.stages = nn.ModuleList(
            SwinStage(
                self.out_dims[i],
                num_heads=num_heads[i],
                window=window,
                mlp_ratio=mlp_ratio,
                drop_paths=list(islice(rates, depths[i])),
                has_checkpointing=has_checkpointing,
            )
            for i in range(4)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.out_dims)
        self.apply(_reset)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Maps fine to coarse, [B, C, H, W] each; sizes are rounded up."""
        x = images.permute(0, 2, 3, 1)  # [B, H, W, 3]
        maps = []
        for embedding, stage, norm in zip(self.embeddings, self.stages, self.norms, strict=True):
            x = stage(embedding(x))
            maps.append(norm(x).permute(0, 3, 1, 2))
        return maps


class PatchEmbedding(nn.Module):
    """A linear map of each patch, and LayerNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, dim, _PATCH_SIZE, stride=_PATCH_SIZE)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b h4 w4 c"]:
        x = _padded(x, _PATCH_SIZE).permute(0, 3, 1, 2)  # [B, 3, H, W]
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Four neighbours as one, normalised and projected to twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.projection = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 c2"]:
        x = _padded(x, 2).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [B, H/2, 2, W/2, 2, C]
        # the weights' order of neighbours: down first, then right
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # [B, H/2, W/2, 4C]
        return self.projection(self.norm(x))


class SwinStage(nn.Module):
    """Blocks of one resolution; every second one sees windows shifted by half a window."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window: int,
        mlp_ratio: float,
        drop_paths: Sequence[float],
        has_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.window, self.has_checkpointing = window, has_checkpointing
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                num_heads=num_heads,
                window=window,
                shift=(i % 2) * (window // 2),
                mlp_ratio=mlp_ratio,
                drop_path=drop_path,
            )
            for i, drop_path in enumerate(drop_paths)
        )

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        pair_bias = _shift_bias(x, self.window)
        for block in self.blocks:
            if self.has_checkpointing and self.training:
                x = checkpoint(block, x, pair_bias, use_reentrant=False)
            else:
                x = block(x, pair_bias)
        return x


class SwinBlock(nn.Module):
    """Attention within windows and an MLP, each normalised first and added to what came in."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window: int,
        shift: int,
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, num_heads=num_heads, window=window)
        self.norm2 = nn.LayerNorm(dim)
        hidden_dim = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "b h w c"], pair_bias: Float[Tensor, "y 1 p p"]
    ) -> Float[Tensor, "b h w c"]:
        x = x + self.drop_path(self._attended(self.norm1(x), pair_bias))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attended(self, x: Tensor, pair_bias: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = _padded(x, self.attention.window)
        if not self.shift:
            return self.attention(x, None)[:, :height, :width]
        x = self.attention(x.roll((-self.shift, -self.shift), (1, 2)), pair_bias)
        return x.roll((self.shift, self.shift), (1, 2))[:, :height, :width]


class WindowAttention(nn.Module):
    """Attention among the places of each window, with a learned bias per offset and head."""

    def __init__(self, dim: int, *, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output_projection = nn.Linear(dim, dim)
        self.offset_bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.offset_bias, std=0.02)

    def forward(
        self, x: Float[Tensor, "b h w c"], pair_bias: Float[Tensor, "y 1 p p"] | None
    ) -> Float[Tensor, "b h w c"]:
        """Sides are multiples of the window; `pair_bias` is added to every head's logits."""
        batch, height = x.shape[:2]
        windows = _windows(x, self.window)  # [B, Y, P, C]
        qkv = self.qkv(windows).flatten(0, 1).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B*Y, N, P, D]
        bias = self._offset_bias()[None]  # [1, N, P, P]
        if pair_bias is not None:
            bias = (bias + pair_bias.to(bias.dtype)).repeat(batch, 1, 1, 1)  # [B*Y, N, P, P]
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        x = self.output_projection(x.transpose(1, 2).flatten(2))  # [B*Y, P, C]
        rows = x.unflatten(1, (self.window, self.window))  # [B*Y, w, w, C]
        rows = rows.unflatten(0, (batch, height // self.window, -1))  # [B, H/w, W/w, w, w, C]
        return rows.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [B, H, W, C]

    def _offset_bias(self) -> Float[Tensor, "n p p"]:
        # not a buffer: it would be lost when a module built on the meta device is filled
        place = torch.arange(self.window, device=self.offset_bias.device)
        offset = place[:, None] - place + self.window - 1  # [w, w], from 0
        across = 2 * self.window - 1
        index = offset[:, None, :, None] * across + offset[None, :, None, :]  # [w, w, w, w]
        return self.offset_bias[index.flatten(0, 1).flatten(1)].permute(2, 0, 1)


def _windows(x: Tensor, window: int) -> Tensor:
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # [B, H/w, w, W/w, w, C]
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [B, Y, w*w, C]


def _shift_bias(x: Tensor, window: int) -> Tensor:
    """Biases of pairs in a shifted window: none, or as good as never for the map's two ends."""
    height, width = (side + -side % window for side in x.shape[1:3])
    regions = _regions(height, window, x)[:, None] * 3 + _regions(width, window, x)  # [H, W]
    regions = _windows(regions[None, :, :, None], window)[0, :, :, 0]  # [Y, P]
    return (regions[:, :, None] != regions[:, None]).to(x.dtype)[:, None] * _APART


def _regions(side: int, window: int, like: Tensor) -> Int[Tensor, " s"]:
    # shifted:  0 0 0 0 0 0 0 | 1 1 1 1 2 2 2    2 = rolled over from the other end
    place = torch.arange(side, device=like.device)
    return (place >= side - window).long() + (place >= side - window // 2)


def _padded(x: Tensor, divisor: int) -> Tensor:
    height, width = x.shape[1:3]
    return F.pad(x, (0, 0, 0, -width % divisor, 0, -height % divisor))


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def swin_t(*, drop_path: float = 0.3, has_checkpointing: bool = False) -> SwinBackbone:
    """Swin-T, window 7. Source: Mask2Former, maskformer2_swin_tiny_bs16_50ep.yaml."""
    return SwinBackbone(
        96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window=7,
        drop_path=drop_path,
        has_checkpointing=has_checkpointing,
    )


def swin_s(*, drop_path: float = 0.3, has_checkpointing: bool = False) -> SwinBackbone:
    """Swin-S, window 7. Source: Mask2Former, maskformer2_swin_small_bs16_50ep.yaml."""
    return SwinBackbone(
        96,
        depths=(2, 2, 18, 2),
        num_heads=(3, 6, 12, 24),
        window=7,
        drop_path=drop_path,
        has_checkpointing=has_checkpointing,
    )


def swin_b(*, drop_path: float = 0.3, has_checkpointing: bool = False) -> SwinBackbone:
    """Swin-B, window 12. Source: Mask2Former, maskformer2_swin_base_384_bs16_50ep.yaml."""
    return SwinBackbone(
        128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        window=12,
        drop_path=drop_path,
        has_checkpointing=has_checkpointing,
    )


def swin_l(*, drop_path: float = 0.3, has_checkpointing: bool = False) -> SwinBackbone:
    """Swin-L, window 12. Source: Mask2Former, maskformer2_swin_large_IN21k_384_bs16_100ep.yaml."""
    return SwinBackbone(
        192,
        depths=(2, 2, 18, 2),
        num_heads=(6, 12, 24, 48),
        window=12,
        drop_path=drop_path,
        has_checkpointing=has_checkpointing,
    )
