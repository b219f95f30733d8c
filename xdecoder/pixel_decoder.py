"""Backbone maps to decoder levels (strides 32, 16, 8) and mask features (stride 4)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from xdecoder.config import NUM_NORM_GROUPS
from xdecoder.layers import DeformableAttention, FeedForward, SelfAttention, sine_positions

_Level = TypeVar("_Level")


class Pyramid(NamedTuple):
    """Levels coarse to fine, and the map that masks are made of.

    memory: what a decoder of a single map reads, at stride 32, where it is not the first level.
    """

    levels: tuple[Float[Tensor, "b c _h _w"], ...]
    mask_features: Float[Tensor, "b m h4 w4"]
    memory: Float[Tensor, "b d _h _w"] | None = None


class NormedConv(nn.Module):
    """Convolution and group normalisation, with a ReLU if asked."""

    def __init__(
        self,
        in_dim: int,
        *,
        out_dim: int,
        kernel_size: int,
        stride: int = 1,
        has_bias: bool = False,
        has_relu: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_dim, out_dim, kernel_size, stride, padding=kernel_size // 2, bias=has_bias
        )
        self.norm = nn.GroupNorm(NUM_NORM_GROUPS, out_dim)
        self.has_relu = has_relu
        _reset_conv(self.conv)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o _h _w"]:
        x = self.norm(self.conv(x))
        return F.relu(x) if self.has_relu else x


class FpnStep(nn.Module):
    """A finer backbone map joined with the coarser result, up-sampled."""

    def __init__(
        self, in_dim: int, *, dim: int, upsampling: Literal["nearest", "bilinear"]
    ) -> None:
        super().__init__()
        self.lateral = NormedConv(in_dim, out_dim=dim, kernel_size=1)
        self.output = NormedConv(dim, out_dim=dim, kernel_size=3, has_relu=True)
        self.upsampling = upsampling

    def forward(
        self, finer: Float[Tensor, "b i h w"], coarser: Float[Tensor, "b c _h _w"]
    ) -> Float[Tensor, "b c h w"]:
        upsampled = F.interpolate(coarser, size=finer.shape[2:], mode=self.upsampling)
        return self.output(self.lateral(finer) + upsampled)


class EncoderLayer(nn.Module):
    """Plain self-attention and feed-forward, each normalised after."""

    def __init__(self, dim: int, *, num_heads: int, ffn_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads=num_heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, hidden_dim=ffn_dim, dropout=dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b s c"], positions: Float[Tensor, "#b s c"]
    ) -> Float[Tensor, "b s c"]:
        x = self.attention_norm(x + self.drop(self.attention(x, positions)))
        return self.ffn_norm(x + self.drop(self.ffn(x)))


class FpnTransformer(nn.Module):
    """A plain transformer on the coarsest map, then a feature pyramid over all four.

    Without layers the pyramid starts at the backbone map itself, as MaskFormer does.
    Source: microsoft/X-Decoder, modeling/vision/encoder/transformer_encoder_fpn.py;
    facebookresearch/MaskFormer, mask_former/modeling/heads/pixel_decoder.py.
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        *,
        dim: int,
        mask_dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_projection = nn.Conv2d(in_dims[-1], dim, 1) if num_layers else None
        self.encoder = nn.ModuleList(
            EncoderLayer(dim, num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout)
            for _ in range(num_layers)
        )
        top_dim = dim if num_layers else in_dims[-1]
        self.top = NormedConv(top_dim, out_dim=dim, kernel_size=3, has_relu=True)
        # strides 16, 8, 4
        self.steps = nn.ModuleList(
            FpnStep(in_dim, dim=dim, upsampling="nearest") for in_dim in reversed(in_dims[:-1])
        )
        self.mask_projection = nn.Conv2d(dim, mask_dim, 3, padding=1)
        if self.input_projection is not None:
            _reset_conv(self.input_projection)
        _reset_conv(self.mask_projection)

    def forward(self, maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> Pyramid:
        """The pyramid of backbone maps given fine to coarse (strides 4 to 32)."""
        memory = self._encoded(maps[-1])
        results = [self.top(memory)]
        for step, finer in zip(self.steps, reversed(maps[:-1]), strict=True):
            results.append(step(finer, results[-1]))
        return Pyramid(
            levels=tuple(results[:-1]),
            mask_features=self.mask_projection(results[-1]),
            memory=memory,
        )

    def _encoded(self, coarsest: Tensor) -> Tensor:
        if self.input_projection is None:
            return coarsest
        projected = self.input_projection(coarsest)
        size_hw = (projected.shape[2], projected.shape[3])
        positions = sine_positions(size_hw, projected.shape[1], like=projected)
        tokens = projected.flatten(2).transpose(1, 2)  # [B, S, C]
        for layer in self.encoder:
            tokens = layer(tokens, positions)
        return tokens.transpose(1, 2).unflatten(2, size_hw)  # [B, C, H, W]


class DeformableEncoderLayer(nn.Module):
    """Deformable attention over all levels and feed-forward, each normalised after."""

    def __init__(
        self, dim: int, *, num_heads: int, num_levels: int, num_points: int, ffn_dim: int
    ) -> None:
        super().__init__()
        self.attention = DeformableAttention(
            dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, hidden_dim=ffn_dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Float[Tensor, "b s c"],
        positions: Float[Tensor, "#b s c"],
        level_sizes_hw: Sequence[tuple[int, int]],
        reference: Float[Tensor, "b s l 2"],
    ) -> Float[Tensor, "b s c"]:
        attended = self.attention(x + positions, x, level_sizes_hw, reference)
        x = self.attention_norm(x + attended)
        return self.ffn_norm(x + self.ffn(x))


class MsDeform(nn.Module):
    """A deformable encoder over several strides, then one pyramid step to stride 4.

    Mask2Former encodes strides 32, 16 and 8 and counts its levels from the coarsest. OpenSeeD
    counts from the finest and has further, coarser levels; its largest model encodes stride 4 too.
    is_finest_first: the order that weights of levels are stored in; encodes_finest: stride 4 is a
    level; num_extra_levels: halvings after stride 32.
    Source: Mask2Former, modeling/pixel_decoder/msdeformattn.py; OpenSeeD, encoder_deform.py.
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        *,
        dim: int,
        mask_dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        num_points: int,
        is_finest_first: bool = False,
        encodes_finest: bool = False,
        num_extra_levels: int = 0,
    ) -> None:
        super().__init__()
        self.is_finest_first = is_finest_first
        self.first_encoded = 0 if encodes_finest else 1
        projections: list[nn.Module] = [
            NormedConv(in_dim, out_dim=dim, kernel_size=1, has_bias=True)
            for in_dim in in_dims[self.first_encoded :]
        ]
        projections += [
            NormedConv(in_dim, out_dim=dim, kernel_size=3, stride=2, has_bias=True)
            for in_dim in (in_dims[-1], *[dim] * num_extra_levels)[:num_extra_levels]
        ]
        num_levels = len(projections)
        self.input_projections = nn.ModuleList(self._in_order(projections))
        self.level_embedding = nn.Embedding(num_levels, dim)
        self.encoder = nn.ModuleList(
            DeformableEncoderLayer(
                dim,
                num_heads=num_heads,
                num_levels=num_levels,
                num_points=num_points,
                ffn_dim=ffn_dim,
            )
            for _ in range(num_layers)
        )
        self.step = FpnStep(in_dims[0], dim=dim, upsampling="bilinear")
        self.mask_projection = nn.Conv2d(dim, mask_dim, 1)
        _reset_conv(self.mask_projection)

    def forward(self, maps: Sequence[Float[Tensor, "b _c _h _w"]]) -> Pyramid:
        """The pyramid of backbone maps given fine to coarse (strides 4 to 32)."""
        inputs = self._in_order(self._inputs(maps))
        sizes_hw = [(map_.shape[2], map_.shape[3]) for map_ in inputs]
        tokens = torch.cat([map_.flatten(2) for map_ in inputs], dim=2).transpose(1, 2)  # [B, S, C]
        positions = torch.cat(
            [
                sine_positions(size_hw, tokens.shape[2], like=tokens) + embedding
                for size_hw, embedding in zip(sizes_hw, self.level_embedding.weight, strict=True)
            ],
            dim=1,
        )  # [1, S, C]
        reference = _pixel_centres_xy01(sizes_hw, tokens)
        reference = reference[None, :, None].expand(len(tokens), -1, len(sizes_hw), -1)
        for layer in self.encoder:
            tokens = layer(tokens, positions, sizes_hw, reference)
        fine_to_coarse = self._in_order(
            [
                part.transpose(1, 2).unflatten(2, size_hw)
                for part, size_hw in zip(
                    tokens.split([height * width for height, width in sizes_hw], dim=1),
                    sizes_hw,
                    strict=True,
                )
            ]
        )
        return Pyramid(
            levels=tuple(reversed(fine_to_coarse)),
            mask_features=self.mask_projection(self.step(maps[0], fine_to_coarse[0])),
        )

    def _inputs(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The encoder's levels, fine to coarse."""
        projections = self._in_order(list(self.input_projections))
        encoded = maps[self.first_encoded :]
        inputs = [projection(map_) for projection, map_ in zip(projections, encoded, strict=False)]
        source = maps[-1]
        for halving in projections[len(encoded) :]:
            source = halving(source)
            inputs.append(source)
        return inputs

    def _in_order(self, levels: list[_Level]) -> list[_Level]:
        """Levels fine to coarse in the stored order, and back."""
        return levels if self.is_finest_first else levels[::-1]


def _pixel_centres_xy01(sizes_hw: Sequence[tuple[int, int]], like: Tensor) -> Float[Tensor, "s 2"]:
    """Centres of the pixels of all levels, at least float32: 16 bits would be off by pixels."""
    device, dtype = like.device, torch.promote_types(like.dtype, torch.float32)
    centres = []
    for height, width in sizes_hw:
        y01 = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
        x01 = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
        grid_yx = torch.meshgrid(y01, x01, indexing="ij")
        centres.append(torch.stack(grid_yx[::-1], -1).flatten(0, 1))  # [H*W, 2]
    return torch.cat(centres)


def _reset_conv(conv: nn.Conv2d) -> None:
    # as fvcore's c2_xavier_fill, which all official pixel decoders use
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
