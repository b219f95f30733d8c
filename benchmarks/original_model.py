"""X-Decoder with the weights of one of ours, run the way the original program runs it.

Shared: trunk, pixel decoder's convolutions, text encoder, heads. The original way: all masks at
full size after every layer, each resized to the next level, a dense Boolean mask for every head,
nn.MultiheadAttention with its averaged weights, all rows again for every token of a caption.
Source: the order of operations in microsoft/X-Decoder, modeling/interface/xdecoder.py.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdecoder.decoder import MaskedDecoder
from xdecoder.layers import MaskedCrossAttention, SelfAttention, sine_positions
from xdecoder.model import XDecoder
from xdecoder.outputs import DecoderOutput, ImageFeatures
from xdecoder.pixel_decoder import FpnTransformer
from xdecoder.queries import QueryLayout, QuerySet, TextQueries


def original_of(model: XDecoder) -> XDecoder:
    """A model that shares every parameter with `model` and computes the original way."""
    other = XDecoder(
        backbone=model.backbone,
        pixel_decoder=_original_encoder(model.pixel_decoder),
        decoder=OriginalDecoder(model.decoder),
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        dim=model.token_table.shape[1],
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        size_divisibility=model.size_divisibility,
        initial_logit_scale=0.0,
    )
    other.image_projection, other.logit_scale = model.image_projection, model.logit_scale
    return other


def multihead(attention: SelfAttention | MaskedCrossAttention) -> nn.MultiheadAttention:
    """torch's module with the parameters of ours."""
    dim = attention.out_proj.in_features
    theirs = nn.MultiheadAttention(dim, attention.num_heads, batch_first=True)
    theirs.in_proj_weight, theirs.in_proj_bias = attention.in_proj.weight, attention.in_proj.bias
    theirs.out_proj.weight, theirs.out_proj.bias = (
        attention.out_proj.weight,
        attention.out_proj.bias,
    )
    return theirs


class OriginalSelfAttention(nn.Module):
    """Self-attention of the pixel decoder's encoder, which asks for weights it does not use."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = multihead(attention)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        query = x + positions
        return self.attention(query, query, x)[0]


def _original_encoder(pixel_decoder: nn.Module) -> nn.Module:
    if not isinstance(pixel_decoder, FpnTransformer):
        raise TypeError(
            "original_of: the released X-Decoder has the pixel decoder fpn_transformer; got "
            f"{type(pixel_decoder).__name__}."
        )
    # parameters stand for themselves, so that the copy shares them
    shared = {id(parameter): parameter for parameter in pixel_decoder.parameters()}
    other = copy.deepcopy(pixel_decoder, shared)
    for layer in other.encoder:
        layer.attention = OriginalSelfAttention(layer.attention)
    return other


class OriginalDecoder(nn.Module):
    """Masked layers with dense masks; parameters are those of a `MaskedDecoder`."""

    def __init__(self, decoder: MaskedDecoder) -> None:
        super().__init__()
        self.ours = decoder
        self.num_latents = decoder.num_latents
        self.num_heads = decoder.layers[0].cross_attention.num_heads
        self.cross = nn.ModuleList(multihead(layer.cross_attention) for layer in decoder.layers)
        self.self_ = nn.ModuleList(multihead(layer.self_attention) for layer in decoder.layers)

    def forward(self, features: ImageFeatures, queries: QuerySet) -> DecoderOutput:
        """What `MaskedDecoder.forward` gives."""
        ours, maps = self.ours, features.levels
        layout = queries.layout(self.num_latents)
        states, positions = ours._rows(queries, layout, features.mask_features.shape[0])
        is_hidden_row = ~layout.may_attend(states.device)
        memories = [
            map_.flatten(2).transpose(1, 2) + embedding
            for map_, embedding in zip(maps, ours.level_embedding.weight, strict=False)
        ]
        places = [sine_positions(map_.shape[2:], map_.shape[1], like=map_) for map_ in maps]
        predictions = []
        for i, layer in enumerate(ours.layers):
            level = i % len(memories)
            predictions.append(ours.heads(states, layout))
            hidden = self._hidden(
                predictions[-1].mask_embeddings, features, maps[level].shape[2:], layout
            )
            looking, where = states[:, layout.cross_rows], positions[:, layout.cross_rows]
            memory = memories[level]
            seen = self.cross[i](looking + where, memory + places[level], memory, attn_mask=hidden)
            looking = layer.cross_norm(looking + seen[0])
            states = torch.cat([looking, states[:, layout.phrase_tokens]], dim=1)
            query = states + positions
            attended = self.self_[i](query, query, states, attn_mask=is_hidden_row)
            states = layer.mix(states, attended[0])
        predictions.append(ours.heads(states, layout))
        # the original makes the masks of its last prediction as well
        self._masks(predictions[-1].mask_embeddings, features)
        return DecoderOutput(
            layers=tuple(predictions), layout=layout, mask_features=features.mask_features
        )

    def _masks(self, embeddings: Tensor, features: ImageFeatures) -> Tensor:
        return torch.einsum("bqc,bchw->bqhw", embeddings, features.mask_features)

    def _hidden(
        self, embeddings: Tensor, features: ImageFeatures, size_hw: torch.Size, layout: QueryLayout
    ) -> Tensor:
        """Keys [B * N, R, K] that rows must not look at; nothing is hidden from captions."""
        logits = self._masks(embeddings, features)
        is_bicubic = self.ours.mask_resize == "bicubic_antialias"
        resized = F.interpolate(
            logits,
            size=tuple(size_hw),
            mode="bicubic" if is_bicubic else "bilinear",
            align_corners=False,
            antialias=is_bicubic,
        ).detach()
        probs = resized.sigmoid().flatten(2).unsqueeze(1)  # [B, 1, R, K]
        hidden = (probs.repeat(1, self.num_heads, 1, 1).flatten(0, 1) < 0.5).bool()
        hidden = F.pad(hidden, (0, 0, 0, layout.num_caption))
        if self.ours.unmask_first_grounding_row and layout.num_grounding:
            hidden[:, layout.grounding.start] = False
        hidden[torch.where(hidden.sum(-1) == hidden.shape[-1])] = False
        return hidden


@torch.no_grad()
def original_caption(model: XDecoder, features: ImageFeatures, num_tokens: int) -> list[list[int]]:
    """Greedy tokens after the start: all rows of the whole context again for every token."""
    length = model.tokenizer.context_length
    num_images = features.mask_features.shape[0]
    ids = torch.full((num_images, length), model.tokenizer.start_id)
    for step in range(num_tokens):
        tokens = model.encode_text(ids).tokens
        caption = TextQueries(tokens=tokens, is_padding=torch.zeros_like(ids, dtype=torch.bool))
        states = model.decode(features, QuerySet(caption=caption)).layers[-1].caption_states
        logits = states @ model.token_table.t()
        ids[:, step + 1] = logits[:, step].argmax(-1)
    return ids[:, 1 : num_tokens + 1].tolist()
