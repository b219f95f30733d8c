"""FocalNet in the two block styles of the released X-Decoder.

Source: arXiv 2203.11926; microsoft/X-Decoder, modeling/vision/backbone/{focal_dw,focal}.py.
Between layers, maps are [B, H, W, C].
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from timm.layers import DropPath
from timm.models import checkpoint_seq
from torch import Tensor, nn
from torch.nn import functional as F

from xdecoder.backbones import drop_path_rates

# Source: both files, LayerScale of every block
INITIAL_LAYER_SCALE = 1e-4


class PatchEmbedding(nn.Module):
    """A strided convolution and LayerNorm; the map is first padded to a multiple of the stride."""

    def __init__(
        self, in_dim: int, *, out_dim: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(in_dim, out_dim, kernel_size, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Float[Tensor, "b h w i"]) -> Float[Tensor, "b h2 w2 o"]:
        height, width = x.shape[1:3]
        x = x.permute(0, 3, 1, 2)  # [B, I, H, W]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class FocalModulation(nn.Module):
    """Each place times a gated sum of its surroundings at growing distance, and of the whole."""

    def __init__(self, dim: int, *, num_levels: int, window: int) -> None:
        super().__init__()
        self.dims = (dim, dim, num_levels + 1)
        self.input_projection = nn.Linear(dim, sum(self.dims))
        self.contexts = nn.ModuleList(
            nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim, bias=False)
            for size in (window + 2 * level for level in range(num_levels))
        )
        self.modulator = nn.Conv2d(dim, dim, 1)
        self.output_projection = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        projected = self.input_projection(x).permute(0, 3, 1, 2)
        query, context, gates = projected.split(self.dims, dim=1)
        total = torch.zeros_like(context)
        for level, conv in enumerate(self.contexts):
            context = F.gelu(conv(context))
            total = total + context * gates[:, level : level + 1]
        whole = F.gelu(context.mean((2, 3), keepdim=True))
        total = total + whole * gates[:, len(self.contexts) :]
        modulated = query * self.modulator(total / self.dims[2])
        return self.output_projection(modulated.permute(0, 2, 3, 1))


class FocalMlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, dim: int, *, hidden_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return self.linear2(F.gelu(self.linear1(x)))


class FocalBlock(nn.Module):
    """Modulation and MLP; only the branches are normalised (Focal-L)."""

    def __init__(self, dim: int, *, num_levels: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.modulation = FocalModulation(dim, num_levels=num_levels, window=window)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = FocalMlp(dim, hidden_dim=4 * dim)
        self.norm2 = nn.LayerNorm(dim)
        self.scale1 = nn.Parameter(torch.full((dim,), INITIAL_LAYER_SCALE))
        self.scale2 = nn.Parameter(torch.full((dim,), INITIAL_LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = x + self.drop_path(self.scale1 * self.norm1(self.modulation(x)))
        return x + self.drop_path(self.scale2 * self.norm2(self.mlp(x)))


class FocalConvBlock(nn.Module):
    """Modulation and MLP after depth-wise convolutions; the sums are normalised (Focal-T)."""

    def __init__(self, dim: int, *, num_levels: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.modulation = FocalModulation(dim, num_levels=num_levels, window=window)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = FocalMlp(dim, hidden_dim=4 * dim)
        self.norm2 = nn.LayerNorm(dim)
        self.scale1 = nn.Parameter(torch.full((dim,), INITIAL_LAYER_SCALE))
        self.scale2 = nn.Parameter(torch.full((dim,), INITIAL_LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = x + _convolved(self.conv1, x)
        x = self.norm1(x + self.drop_path(self.scale1 * self.modulation(x)))
        x = x + _convolved(self.conv2, x)
        return self.norm2(x + self.drop_path(self.scale2 * self.mlp(x)))


class FocalNet(nn.Module):
    """Maps at strides 4, 8, 16, 32, each normalised on its way out.

    block: `conv` for Focal-T, `plain` for Focal-L; they also differ in the padding of the stem.
    drop_path: probability at the last block, growing linearly from zero. has_checkpointing: in
    training, blocks run again in the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        dim: int,
        *,
        depths: Sequence[int],
        num_levels: int,
        block: Literal["conv", "plain"],
        window: int = 3,
        drop_path: float = 0.0,
        has_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.has_checkpointing = has_checkpointing
        dims = [dim * 2**stage for stage in range(len(depths))]
        self.out_dims = tuple(dims)
        stem_padding = 3 if block == "conv" else 2
        self.embeddings = nn.ModuleList(
            [
                PatchEmbedding(3, out_dim=dim, kernel_size=7, stride=4, padding=stem_padding),
                *(
                    PatchEmbedding(width, out_dim=2 * width, kernel_size=3, stride=2, padding=1)
                    for width in dims[:-1]
                ),
            ]
        )
        rates = iter(drop_path_rates(sum(depths), last=drop_path))
        style = FocalConvBlock if block == "conv" else FocalBlock
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    style(width, num_levels=num_levels, window=window, drop_path=next(rates))
                    for _ in range(depth)
                )
            )
            for width, depth in zip(dims, depths, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in dims)
        self.apply(_reset)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Maps fine to coarse, [B, C, H, W] each."""
        x = images.permute(0, 2, 3, 1)  # [B, H, W, 3]
        maps = []
        for embedding, stage, norm in zip(self.embeddings, self.stages, self.norms, strict=True):
            x = embedding(x)
            is_checkpointed = self.has_checkpointing and self.training
            x = checkpoint_seq(stage, x) if is_checkpointed else stage(x)
            maps.append(norm(x).permute(0, 3, 1, 2))
        return maps


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def focal_t(*, drop_path: float = 0.3, has_checkpointing: bool = False) -> FocalNet:
    """Focal-T of the released X-Decoder, 29.9 million parameters.

    Source: configs/xdecoder/focalt_unicl_lang.yaml.
    """
    return FocalNet(
        96,
        depths=(2, 2, 6, 2),
        num_levels=3,
        block="conv",
        drop_path=drop_path,
        has_checkpointing=has_checkpointing,
    )


def focal_l(*, drop_path: float = 0.3, has_checkpointing: bool = False) -> FocalNet:
    """Focal-L of the released X-Decoder, 205.7 million parameters.

    Source: configs/xdecoder/focall_unicl_lang.yaml.
    """
    return FocalNet(
        192,
        depths=(2, 2, 18, 2),
        num_levels=4,
        block="plain",
        drop_path=drop_path,
        has_checkpointing=has_checkpointing,
    )
