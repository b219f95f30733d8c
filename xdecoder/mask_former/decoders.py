"""Two decoders of queries with a fixed list of classes: plain (MaskFormer) and masked."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kernels.masked_xattn import mask_bits
from xdecoder.decoder import MaskedLayer, decoder_levels
from xdecoder.layers import MLP, FeedForward, MaskedCrossAttention, SelfAttention, sine_positions
from xdecoder.mask_former.outputs import ClassPrediction
from xdecoder.pixel_decoder import Pyramid
from xdecoder.queries import QueryLayout


class ClassHeads(nn.Module):
    """Class logits and mask vectors from normalised states, the same heads for every layer."""

    def __init__(self, dim: int, *, num_classes: int, mask_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.class_projection = nn.Linear(dim, num_classes + 1)
        self.mask_mlp = MLP(dim, hidden_dim=dim, out_dim=mask_dim, num_layers=3)

    def forward(self, states: Float[Tensor, "b q c"]) -> ClassPrediction:
        states = self.norm(states)
        return ClassPrediction(self.class_projection(states), self.mask_mlp(states))


class DetrLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each normalised after.

    dropout: of attention weights, of the hidden features and of every branch.
    """

    def __init__(self, dim: int, *, num_heads: int, ffn_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attention = SelfAttention(dim, num_heads=num_heads, dropout=dropout)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = MaskedCrossAttention(dim, num_heads=num_heads, dropout=dropout)
        self.cross_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, hidden_dim=ffn_dim, dropout=dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        states: Float[Tensor, "b q c"],
        positions: Float[Tensor, "#b q c"],
        memory: Float[Tensor, "b k c"],
        memory_positions: Float[Tensor, "#b k c"],
    ) -> Float[Tensor, "b q c"]:
        states = self.self_norm(states + self.drop(self.self_attention(states, positions)))
        seen = self.cross_attention(states + positions, memory, memory_positions, None)
        states = self.cross_norm(states + self.drop(seen))
        return self.ffn_norm(states + self.drop(self.ffn(states)))


class DetrDecoder(nn.Module):
    """Queries that start empty and look at one whole map.

    Source: facebookresearch/MaskFormer, mask_former/modeling/transformer.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        num_queries: int,
        num_classes: int,
        mask_dim: int,
        has_input_projection: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_projection = _projection(in_dim, dim, has_input_projection)
        self.query_positions = nn.Embedding(num_queries, dim)
        self.layers = nn.ModuleList(
            DetrLayer(dim, num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout)
            for _ in range(num_layers)
        )
        self.heads = ClassHeads(dim, num_classes=num_classes, mask_dim=mask_dim)

    def forward(self, pyramid: Pyramid) -> tuple[ClassPrediction, ...]:
        """One prediction after each layer."""
        coarsest = pyramid.levels[0] if pyramid.memory is None else pyramid.memory
        map_ = self.input_projection(coarsest)
        memory_positions = sine_positions((map_.shape[2], map_.shape[3]), map_.shape[1], like=map_)
        memory = map_.flatten(2).transpose(1, 2)  # [B, K, C]
        positions = self.query_positions.weight[None]
        states = torch.zeros_like(positions).expand(len(memory), -1, -1)  # [B, Q, C]
        predictions = []
        for layer in self.layers:
            states = layer(states, positions, memory, memory_positions)
            predictions.append(self.heads(states))
        return tuple(predictions)


class MaskedQueryDecoder(nn.Module):
    """Learned queries that look where their last masks are, level after level.

    level_order: places in the pyramid's levels, coarse to fine, of the maps that are looked at in
    turn; in_dims: widths of those maps, in the same order.
    Source: facebookresearch/Mask2Former, mask2former_transformer_decoder.py.
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        num_queries: int,
        num_classes: int,
        mask_dim: int,
        has_input_projection: bool,
        level_order: Sequence[int] = (0, 1, 2),
    ) -> None:
        super().__init__()
        self.level_order = tuple(level_order)
        self.layout = QueryLayout(num_latents=num_queries, has_global_query=False)
        self.input_projections = nn.ModuleList(
            _projection(in_dim, dim, has_input_projection) for in_dim in in_dims
        )
        self.query_content = nn.Embedding(num_queries, dim)
        self.query_positions = nn.Embedding(num_queries, dim)
        self.level_embedding = nn.Embedding(len(in_dims), dim)
        self.layers = nn.ModuleList(
            MaskedLayer(dim, num_heads=num_heads, ffn_dim=ffn_dim) for _ in range(num_layers)
        )
        self.heads = ClassHeads(dim, num_classes=num_classes, mask_dim=mask_dim)

    def forward(self, pyramid: Pyramid) -> tuple[ClassPrediction, ...]:
        """One prediction from the learned queries and one after each layer."""
        maps = [
            projection(pyramid.levels[place])
            for projection, place in zip(self.input_projections, self.level_order, strict=True)
        ]
        levels = decoder_levels(
            maps, pyramid.mask_features, self.level_embedding.weight, "bilinear"
        )
        shape = (len(maps[0]), -1, -1)
        states = self.query_content.weight[None].expand(shape)  # [B, Q, C]
        positions = self.query_positions.weight[None].expand(shape)  # [B, Q, C]
        predictions: list[ClassPrediction] = [self.heads(states)]
        for i, layer in enumerate(self.layers):
            level = levels[i % len(levels)]
            sees_pixels = mask_bits(predictions[-1].mask_embeddings, level.mask_features)
            states = layer(states, positions, level, sees_pixels, None, self.layout)
            predictions.append(self.heads(states))
        return tuple(predictions)


def _projection(in_dim: int, dim: int, is_always: bool) -> nn.Module:
    if in_dim == dim and not is_always:
        return nn.Identity()
    projection = nn.Conv2d(in_dim, dim, 1)
    # as fvcore's c2_xavier_fill
    nn.init.kaiming_uniform_(projection.weight, a=1)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    return projection
