"""The decoder: rows look at the image where their masks are, at each other, and predict."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kernels.masked_xattn import MaskBits, mask_bits, resize_mask_features
from kernels.masked_xattn.api import ResizeMode
from xdecoder.heads import PredictionHeads
from xdecoder.layers import FeedForward, MaskedCrossAttention, SelfAttention, shrink, sine_positions
from xdecoder.outputs import DecoderOutput, ImageFeatures
from xdecoder.queries import QueryLayout, QuerySet


class MaskedLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward, each normalised after."""

    def __init__(self, dim: int, *, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.cross_attention = MaskedCrossAttention(dim, num_heads=num_heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.self_attention = SelfAttention(dim, num_heads=num_heads)
        self.self_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, hidden_dim=ffn_dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(
        self,
        states: Float[Tensor, "b r c"],
        positions: Float[Tensor, "b r c"],
        level: "Level",
        sees_pixels: MaskBits,
        sees_rows: Bool[Tensor, "#b 1 r r"] | None,
        layout: QueryLayout,
    ) -> Float[Tensor, "b r c"]:
        looking = states[:, layout.cross_rows]
        query = looking + positions[:, layout.cross_rows]
        seen = self.cross_attention(query, level.memory, level.positions, sees_pixels)
        looking = self.cross_norm(looking + seen)
        states = torch.cat([looking, states[:, layout.phrase_tokens]], dim=1)  # [B, R, C]
        states = self.self_norm(states + self.self_attention(states, positions, sees_rows))
        return self.ffn_norm(states + self.ffn(states))


class Level:
    """One map of the pyramid, ready for cross-attention."""

    def __init__(self, *, memory: Tensor, positions: Tensor, mask_features: Tensor) -> None:
        # [B, K, C], [1, K, C] and [B, C, K]
        self.memory, self.positions, self.mask_features = memory, positions, mask_features


def decoder_levels(
    maps: Sequence[Float[Tensor, "b c _h _w"]],
    mask_features: Float[Tensor, "b m h4 w4"],
    level_embeddings: Float[Tensor, "l c"],
    mask_resize: ResizeMode,
) -> list[Level]:
    """One level per embedding: its tokens, their positions, mask features at its size."""
    levels = []
    for map_, embedding in zip(maps[: len(level_embeddings)], level_embeddings, strict=True):
        size_hw = (map_.shape[2], map_.shape[3])
        # masks decide only where attention may look, so nothing flows back through them
        resized = resize_mask_features(mask_features.detach(), size_hw, mode=mask_resize)
        levels.append(
            Level(
                memory=map_.flatten(2).transpose(1, 2) + embedding,
                positions=sine_positions(size_hw, map_.shape[1], like=map_),
                mask_features=resized.flatten(2),  # [B, M, K]
            )
        )
    return levels


class MaskedDecoder(nn.Module):
    """Latent, global, grounding and caption rows through the masked layers.

    Layer i looks at level i modulo the number of levels, coarse to fine.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        num_latents: int,
        context_length: int,
        num_levels: int = 3,
        mask_resize: ResizeMode = "bilinear",
        unmask_first_grounding_row: bool = False,
    ) -> None:
        super().__init__()
        self.num_latents = num_latents
        self.mask_resize = mask_resize
        self.unmask_first_grounding_row = unmask_first_grounding_row
        # the latents and, last, the global query
        self.query_content = nn.Embedding(num_latents + 1, dim)
        self.query_positions = nn.Embedding(num_latents + 1, dim)
        self.caption_positions = nn.Embedding(context_length, dim)
        self.level_embedding = nn.Embedding(num_levels, dim)
        layers = [MaskedLayer(dim, num_heads=num_heads, ffn_dim=ffn_dim) for _ in range(num_layers)]
        self.layers = nn.ModuleList(layers)
        self.heads = PredictionHeads(dim)
        nn.init.trunc_normal_(self.caption_positions.weight, std=0.02)
        for layer in layers:
            ends = (
                layer.cross_attention.out_proj,
                layer.self_attention.out_proj,
                layer.ffn.linear2,
            )
            shrink(*ends, factor=(3 * num_layers) ** -0.5)

    def forward(self, features: ImageFeatures, queries: QuerySet) -> DecoderOutput:
        """One prediction from the learned queries and one after each layer."""
        layout = queries.layout(self.num_latents)
        levels = decoder_levels(
            features.levels, features.mask_features, self.level_embedding.weight, self.mask_resize
        )
        states, positions = self._rows(queries, layout, features.mask_features.shape[0])
        sees_rows = _sees_rows(queries, layout, states.device)
        predictions = [self.heads(states, layout)]
        for i, layer in enumerate(self.layers):
            level = levels[i % len(levels)]
            sees_pixels = self._sees_pixels(predictions[-1].mask_embeddings, level, layout)
            states = layer(states, positions, level, sees_pixels, sees_rows, layout)
            predictions.append(self.heads(states, layout))
        return DecoderOutput(
            layers=tuple(predictions), layout=layout, mask_features=features.mask_features
        )

    def _rows(
        self, queries: QuerySet, layout: QueryLayout, num_images: int
    ) -> tuple[Tensor, Tensor]:
        """Content and positions of all rows, in the order of the layout.

        Text enters as content without gradient and as position with it.
        Source: microsoft/X-Decoder, modeling/interface/xdecoder.py.
        """
        learned = (self.query_content.weight, self.query_positions.weight)
        content, positions = (table[None].expand(num_images, -1, -1) for table in learned)
        contents, all_positions = [content], [positions]
        if queries.grounding is not None:
            contents.append(content[:, layout.latents])
            all_positions.append(positions[:, layout.latents])
        if queries.caption is not None:
            tokens = queries.caption.tokens
            contents.append(tokens.detach())
            all_positions.append(tokens + self.caption_positions.weight[: layout.num_caption])
        if queries.grounding is not None:
            contents.append(queries.grounding.tokens.detach())
            all_positions.append(queries.grounding.tokens)
        return torch.cat(contents, dim=1), torch.cat(all_positions, dim=1)  # [B, R, C] each

    def _sees_pixels(self, mask_embeddings: Tensor, level: Level, layout: QueryLayout) -> MaskBits:
        bits = mask_bits(mask_embeddings, level.mask_features, num_unmasked_rows=layout.num_caption)
        if self.unmask_first_grounding_row and layout.num_grounding:
            bits = bits.with_unmasked_row(layout.grounding.start)
        return bits


def _sees_rows(queries: QuerySet, layout: QueryLayout, device: torch.device) -> Tensor:
    """Self-attention permissions [B or 1, 1, R, R]: the table, without padded phrase tokens."""
    may_attend = layout.may_attend(device)[None, None]
    if queries.grounding is None:
        return may_attend
    is_padding = queries.grounding.is_padding
    is_hidden = torch.zeros(
        is_padding.shape[0], 1, 1, layout.num_rows, dtype=torch.bool, device=device
    )
    is_hidden[..., layout.phrase_tokens] = is_padding[:, None, None]
    return may_attend & ~is_hidden
