"""Captions one token at a time, with everything kept that an earlier token has computed.

Exact because of who sees whom: latents and the global query see no caption, so their rows are the
same at every step; a caption row sees itself and those before it, so no earlier row changes; and
the text encoder is causal.

    kept per layer     keys and values of the image     of latents and global     of caption tokens
    computed           once                             once                      one per step
"""

from typing import cast

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from xdecoder.decoder import Looked, MaskedLayer
from xdecoder.layers import SelfAttention, merge_heads
from xdecoder.model import XDecoder
from xdecoder.outputs import ImageFeatures
from xdecoder.text.encoder import TextBlock, TextEncoder


class _KeptRows:
    """Keys and values of one self-attention, with room for the rows to come."""

    def __init__(self, key: Tensor, value: Tensor, num_more: int) -> None:
        # [B, N, rows so far and to come, D]
        self.key, self.value = (F.pad(part, (0, 0, 0, num_more)) for part in (key, value))
        self.count = key.shape[2]

    def attend(
        self, attention: SelfAttention, rows: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """What new rows [B, 1, C] take from all rows so far and from themselves."""
        query, key, value = attention.project(rows, positions)
        place = slice(self.count, self.count + 1)
        self.key[:, :, place], self.value[:, :, place] = key, value
        self.count += 1
        seen = slice(0, self.count)
        return attention.attend(query, self.key[:, :, seen], self.value[:, :, seen])

    def reorder(self, rows: Tensor) -> None:
        """Go on with some of the streams, in another order."""
        self.key, self.value = self.key[rows], self.value[rows]


class _TextStream:
    """Token vectors of a text that grows, as `TextEncoder` gives them for the whole text."""

    def __init__(self, encoder: TextEncoder, num_streams: int, max_tokens: int) -> None:
        self.encoder, self.length = encoder, 0
        table = encoder.token_embedding.weight
        self.blocks = cast(list[TextBlock], list(encoder.blocks))
        self.kept = []
        for block in self.blocks:
            num_heads = block.attention.num_heads
            empty = table.new_zeros(num_streams, num_heads, 0, table.shape[1] // num_heads)
            self.kept.append(_KeptRows(empty, empty, max_tokens))

    def step(self, token_ids: Int[Tensor, " s"]) -> Float[Tensor, "s 1 c"]:
        """The vectors of the next tokens."""
        encoder = self.encoder
        token_ids = token_ids.to(encoder.positions.device)
        x = encoder.token_embedding(token_ids)[:, None] + encoder.positions[self.length]
        self.length += 1
        for block, kept in zip(self.blocks, self.kept, strict=True):
            x = x + kept.attend(block.attention, block.norm1(x))
            x = block.fed(x)
        return encoder.projection(encoder.norm(x))


class _LayerStream:
    """Caption rows through one decoder layer."""

    def __init__(
        self, layer: MaskedLayer, looked: Looked, positions: Tensor, num_beams: int, room: int
    ) -> None:
        self.layer, self.num_beams = layer, num_beams
        level = looked.level
        self.key, self.value = layer.cross_attention.project_memory(level.memory, level.positions)
        self.may_look = None if level.may_look is None else level.may_look[:, None, None]
        _, key, value = layer.self_attention.project(looked.states, positions)
        self.kept = _KeptRows(
            key.repeat_interleave(num_beams, dim=0), value.repeat_interleave(num_beams, dim=0), room
        )

    def step(
        self, states: Float[Tensor, "s 1 c"], positions: Float[Tensor, "s 1 c"]
    ) -> Float[Tensor, "s 1 c"]:
        """New caption rows after this layer."""
        layer, attention = self.layer, self.layer.cross_attention
        # beams of one image share its keys: they are the rows of one attention
        rows = (states + positions).view(-1, self.num_beams, states.shape[2])
        query = attention.project_rows(rows)
        seen = F.scaled_dot_product_attention(query, self.key, self.value, attn_mask=self.may_look)
        looked = layer.cross_norm(states + attention.out_proj(merge_heads(seen)).view_as(states))
        return layer.mix(looked, self.kept.attend(layer.self_attention, looked, positions))


class CaptionStream:
    """Next-token logits of captions that grow by one token per step.

    Streams are images times beams, the beams of an image one after another. The numbers are those
    of decoding the whole caption again at every step.
    """

    def __init__(
        self,
        model: XDecoder,
        features: ImageFeatures,
        *,
        max_tokens: int,
        num_beams: int = 1,
        may_look: Bool[Tensor, "b h w"] | None = None,
    ) -> None:
        self.model, self.length = model, 0
        num_streams = features.mask_features.shape[0] * num_beams
        self.text = _TextStream(model.text_encoder, num_streams, max_tokens)
        looked, positions = model.decoder.look_once(features, may_look)
        layers = cast(list[MaskedLayer], list(model.decoder.layers))
        self.layers = [
            _LayerStream(layer, each, positions, num_beams, max_tokens)
            for layer, each in zip(layers, looked, strict=True)
        ]

    def step(self, token_ids: Int[Tensor, " s"]) -> Float[Tensor, "s v"]:
        """Logits of what follows each stream's new token; the first token is the start."""
        return self.states(token_ids) @ self.model.token_table.t()

    def states(self, token_ids: Int[Tensor, " s"]) -> Float[Tensor, "s c"]:
        """`LayerPrediction.caption_states` of the new tokens after the last layer."""
        decoder = self.model.decoder
        states = self.text.step(token_ids)
        positions = states + decoder.caption_positions.weight[self.length]
        self.length += 1
        for layer in self.layers:
            states = layer.step(states, positions)
        return decoder.heads.caption_projection(decoder.heads.norm(states)).squeeze(1)

    def reorder(self, streams: Int[Tensor, " s"]) -> None:
        """Go on with some of the streams, in another order; only among beams of one image."""
        for kept in (*self.text.kept, *(layer.kept for layer in self.layers)):
            kept.reorder(streams)
