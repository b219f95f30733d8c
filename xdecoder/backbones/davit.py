"""DaViT: attention among places of a window, then among channels.

Source: arXiv 2204.03645; microsoft/X-Decoder, modeling/vision/backbone/davit.py.
Between layers, maps are [B, H, W, C].
"""

from collections.abc import Sequence

from jaxtyping import Float
from timm.layers import DropPath
from timm.models import checkpoint_seq
from torch import Tensor, nn
from torch.nn import functional as F

from xdecoder.backbones import drop_path_rates


class ConvEmbedding(nn.Module):
    """A strided convolution; LayerNorm before or after it."""

    def __init__(
        self,
        in_dim: int,
        *,
        out_dim: int,
        kernel_size: int,
        stride: int,
        padding: int,
        is_norm_first: bool,
    ) -> None:
        super().__init__()
        self.is_norm_first = is_norm_first
        self.conv = nn.Conv2d(in_dim, out_dim, kernel_size, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(in_dim if is_norm_first else out_dim)

    def forward(self, x: Float[Tensor, "b h w i"]) -> Float[Tensor, "b h2 w2 o"]:
        if self.is_norm_first:
            x = self.norm(x)
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x if self.is_norm_first else self.norm(x)


class WindowAttention(nn.Module):
    """Attention among the places of each window; zeros fill windows that cross the border."""

    def __init__(self, dim: int, *, num_groups: int, window: int = 7) -> None:
        super().__init__()
        self.num_groups, self.window = num_groups, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output_projection = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        height, width = x.shape[1:3]
        side = self.window
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        x = x.unflatten(1, (-1, side)).unflatten(3, (-1, side))  # [B, Y, 7, X, 7, C]
        windows = x.transpose(2, 3)  # [B, Y, X, 7, 7, C]
        qkv = self.qkv(windows.flatten(3, 4)).unflatten(-1, (3, self.num_groups, -1))
        query, key, value = qkv.movedim(-3, 0).transpose(-2, -3)  # [B, Y, X, N, 49, D]
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = self.output_projection(attended.transpose(-2, -3).flatten(-2))
        x = attended.unflatten(3, (side, side)).transpose(2, 3)  # [B, Y, 7, X, 7, C]
        return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]


class ChannelAttention(nn.Module):
    """Attention among the channels of each group; a channel is described by all its places."""

    def __init__(self, dim: int, *, num_groups: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output_projection = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        size_hw = x.shape[1:3]
        qkv = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.num_groups, -1))
        query, key, value = qkv.permute(2, 0, 3, 4, 1)  # [B, G, D, S]
        # scaled by the number of places, which is what the products are summed over
        weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1)
        attended = (weights @ value).flatten(1, 2).transpose(1, 2)  # [B, S, C]
        return self.output_projection(attended).unflatten(1, size_hw)


class DaVitBlock(nn.Module):
    """Convolution, attention, convolution, MLP; each added to what came in."""

    def __init__(self, dim: int, *, attention: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = x + self.conv1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attention(self.attention_norm(x)))
        x = x + self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.mlp(self.mlp_norm(x)))


class DaVit(nn.Module):
    """Maps at strides 4, 8, 16, 32, not normalised.

    Each unit of depth is a spatial and a channel block. num_heads: of window attention;
    num_groups: of channel attention, as many as heads where not given. drop_path: probability at
    the last block, growing linearly from zero. has_checkpointing: in training, blocks run again in
    the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        dims: Sequence[int],
        *,
        depths: Sequence[int],
        num_heads: Sequence[int],
        patch_sizes: Sequence[int],
        patch_paddings: Sequence[int],
        num_groups: Sequence[int] | None = None,
        drop_path: float = 0.0,
        has_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.has_checkpointing = has_checkpointing
        self.out_dims = tuple(dims)
        in_dims = (3, *dims[:-1])
        self.embeddings = nn.ModuleList(
            ConvEmbedding(
                in_dims[i],
                out_dim=dims[i],
                kernel_size=patch_sizes[i],
                stride=2 if i else 4,
                padding=patch_paddings[i],
                is_norm_first=i > 0,
            )
            for i in range(len(dims))
        )
        rates = iter(drop_path_rates(2 * sum(depths), last=drop_path))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    DaVitBlock(dim, attention=attention, drop_path=next(rates))
                    for _ in range(depth)
                    for attention in (
                        WindowAttention(dim, num_groups=heads),
                        ChannelAttention(dim, num_groups=groups),
                    )
                )
            )
            for dim, depth, heads, groups in zip(
                dims, depths, num_heads, num_groups or num_heads, strict=True
            )
        )

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Maps fine to coarse, [B, C, H, W] each."""
        x = images.permute(0, 2, 3, 1)  # [B, H, W, 3]
        maps = []
        for embedding, stage in zip(self.embeddings, self.stages, strict=True):
            x = embedding(x)
            is_checkpointed = self.has_checkpointing and self.training
            x = checkpoint_seq(stage, x) if is_checkpointed else stage(x)
            maps.append(x.permute(0, 3, 1, 2))
        return maps


def davit_d3(*, drop_path: float = 0.3, has_checkpointing: bool = False) -> DaVit:
    """DaViT-d3 of X-Decoder (B), 86.9 million parameters.

    Source: configs/xdecoder/davitd3_unicl_lang.yaml.
    """
    return DaVit(
        (128, 256, 512, 1024),
        depths=(1, 1, 9, 1),
        num_heads=(4, 8, 16, 32),
        patch_sizes=(7, 2, 2, 2),
        patch_paddings=(3, 0, 0, 0),
        drop_path=drop_path,
        has_checkpointing=has_checkpointing,
    )


def davit_d5(*, drop_path: float = 0.3, has_checkpointing: bool = False) -> DaVit:
    """DaViT-d5 of X-Decoder (L), 360.6 million parameters.

    Source: configs/xdecoder/davitd5_unicl_lang.yaml.
    """
    return DaVit(
        (256, 512, 1024, 2048),
        depths=(1, 1, 9, 1),
        num_heads=(8, 16, 32, 64),
        patch_sizes=(7, 3, 3, 3),
        patch_paddings=(3, 1, 1, 1),
        drop_path=drop_path,
        has_checkpointing=has_checkpointing,
    )
