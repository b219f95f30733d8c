"""The decoder: rows look at the image where their masks are, at each other, and predict."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.masked_xattn import MaskBits, mask_bits, pack_mask_bits, resize_mask_features
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
        looked = self.look(
            states[:, layout.cross_rows], positions[:, layout.cross_rows], level, sees_pixels
        )
        states = torch.cat([looked, states[:, layout.phrase_tokens]], dim=1)  # [B, R, C]
        return self.mix(states, self.self_attention(states, positions, sees_rows))

    def look(
        self,
        states: Float[Tensor, "b r c"],
        positions: Float[Tensor, "b r c"],
        level: "Level",
        sees_pixels: MaskBits,
    ) -> Float[Tensor, "b r c"]:
        """Rows after they have looked at the image."""
        seen = self.cross_attention(states + positions, level.memory, level.positions, sees_pixels)
        return self.cross_norm(states + seen)

    def mix(
        self, states: Float[Tensor, "b r c"], attended: Float[Tensor, "b r c"]
    ) -> Float[Tensor, "b r c"]:
        """Rows with what they took from each other, through the feed-forward."""
        states = self.self_norm(states + attended)
        return self.ffn_norm(states + self.ffn(states))


class Level:
    """One map of the pyramid, ready for cross-attention.

    may_look: the places that caption rows may look at, everywhere without it.
    """

    def __init__(
        self,
        *,
        memory: Float[Tensor, "b k c"],
        positions: Float[Tensor, "1 k c"],
        mask_features: Float[Tensor, "b m k"],
        may_look: Bool[Tensor, "b k"] | None = None,
    ) -> None:
        self.memory, self.positions, self.mask_features = memory, positions, mask_features
        self.may_look = may_look


class Looked(NamedTuple):
    """Latents and the global query after they have looked at a level, in one layer."""

    level: Level
    states: Float[Tensor, "b q c"]


def decoder_levels(
    maps: Sequence[Float[Tensor, "b c _h _w"]],
    mask_features: Float[Tensor, "b m h4 w4"],
    level_embeddings: Float[Tensor, "l c"],
    mask_resize: ResizeMode,
    may_look: Bool[Tensor, "b h w"] | None = None,
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
                may_look=None if may_look is None else _places(may_look, size_hw),
            )
        )
    return levels


def _places(may_look: Bool[Tensor, "b h w"], size_hw: tuple[int, int]) -> Bool[Tensor, "b k"]:
    """The places of a level that captions may look at: those whose nearest pixel is allowed.

    Where no such place is, a small region must not become the whole image: then those that hold
    an allowed pixel. Where no pixel is allowed, all places.
    """
    pixels = may_look[:, None].float()
    nearest = F.interpolate(pixels, size=size_hw, mode="nearest").flatten(1) > 0  # [B, K]
    touched = F.adaptive_max_pool2d(pixels, size_hw).flatten(1) > 0
    places = torch.where(nearest.any(1, keepdim=True), nearest, touched)
    return places | ~places.any(1, keepdim=True)


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
        levels = self._levels(features, queries.caption_may_look)
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

    def look_once(
        self, features: ImageFeatures, may_look: Bool[Tensor, "b h w"] | None = None
    ) -> tuple[tuple["Looked", ...], Float[Tensor, "1 q c"]]:
        """What latents and the global query bring to each layer, and their positions.

        They see no text, so all that captions read of them and of the image is in here.
        may_look: as `QuerySet.caption_may_look`.
        """
        queries = QuerySet()
        layout = queries.layout(self.num_latents)
        levels = self._levels(features, may_look)
        states, positions = self._rows(queries, layout, features.mask_features.shape[0])
        sees_rows = _sees_rows(queries, layout, states.device)
        brought = []
        for i, layer in enumerate(cast(list[MaskedLayer], list(self.layers))):
            level = levels[i % len(levels)]
            embeddings = self.heads(states, layout).mask_embeddings
            looked = layer.look(
                states, positions, level, self._sees_pixels(embeddings, level, layout)
            )
            brought.append(Looked(level=level, states=looked))
            states = layer.mix(looked, layer.self_attention(looked, positions, sees_rows))
        return tuple(brought), positions[:1]

    def _levels(
        self, features: ImageFeatures, may_look: Bool[Tensor, "b h w"] | None
    ) -> list[Level]:
        return decoder_levels(
            features.levels,
            features.mask_features,
            self.level_embedding.weight,
            self.mask_resize,
            may_look,
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
            tokens, learned_content = queries.caption.tokens, queries.caption.content
            order = self.caption_positions.weight[: layout.num_caption]
            contents.append(tokens.detach() if learned_content is None else learned_content)
            all_positions.append(tokens + order if learned_content is None else tokens)
        if queries.grounding is not None:
            contents.append(queries.grounding.tokens.detach())
            all_positions.append(queries.grounding.tokens)
        return torch.cat(contents, dim=1), torch.cat(all_positions, dim=1)  # [B, R, C] each

    def _sees_pixels(self, mask_embeddings: Tensor, level: Level, layout: QueryLayout) -> MaskBits:
        is_free = level.may_look is None
        bits = mask_bits(
            mask_embeddings,
            level.mask_features,
            num_unmasked_rows=layout.num_caption if is_free else 0,
        )
        if self.unmask_first_grounding_row and layout.num_grounding:
            bits = bits.with_unmasked_row(layout.grounding.start)
        if level.may_look is None or not layout.num_caption:
            return bits
        allowed = level.may_look[:, None].expand(-1, layout.num_caption, -1)  # [B, T, K]
        return bits.with_rows_after(pack_mask_bits(allowed))


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
