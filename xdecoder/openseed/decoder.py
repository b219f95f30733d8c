"""Queries with boxes that look at all levels around their box, layer after layer.

Source: IDEA-Research/OpenSeeD, openseed_decoder.py and openseed_decoder_decouple.py; MaskDINO
(arXiv 2206.02777) and DINO (arXiv 2203.03605), from which they come.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xdecoder.heads import class_logits
from xdecoder.layers import MLP, DeformableAttention, FeedForward, SelfAttention
from xdecoder.openseed.boxes import logit, sine_boxes
from xdecoder.openseed.denoising import Conditions
from xdecoder.openseed.outputs import BoxPrediction, OpenSeeDOutput
from xdecoder.openseed.proposals import most_nameable, proposals
from xdecoder.pixel_decoder import Pyramid


@dataclass(frozen=True, kw_only=True)
class Names:
    """The vocabulary of a call: unit vectors of K names, and the log of the similarity scale."""

    embeddings: Float[Tensor, "k d"]
    logit_scale: Float[Tensor, " 1"]


class DeformableBoxLayer(nn.Module):
    """Self-attention, deformable attention around each query's box, feed-forward."""

    def __init__(
        self, dim: int, *, num_heads: int, num_levels: int, num_points: int, ffn_dim: int
    ) -> None:
        super().__init__()
        self.self_attention = SelfAttention(dim, num_heads=num_heads)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(
            dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.cross_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, hidden_dim=ffn_dim)
        self.ffn_norm = nn.LayerNorm(dim)

    def forward(
        self,
        states: Float[Tensor, "b q c"],
        positions: Float[Tensor, "b q c"],
        boxes_cxcywh01: Float[Tensor, "b q 4"],
        memory: "_Memory",
        may_attend: Bool[Tensor, "1 1 q q"] | None,
    ) -> Float[Tensor, "b q c"]:
        states = self.self_norm(states + self.self_attention(states, positions, may_attend))
        reference = boxes_cxcywh01[:, :, None].expand(-1, -1, len(memory.sizes_hw), -1)
        seen = self.cross_attention(states + positions, memory.tokens, memory.sizes_hw, reference)
        states = self.cross_norm(states + seen)
        return self.ffn_norm(states + self.ffn(states))


class BoxHeads(nn.Module):
    """Similarity to names, mask vectors and shifts of boxes, the same heads for every layer."""

    def __init__(self, dim: int, *, shared_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.class_projection = nn.Linear(dim, shared_dim, bias=False)
        self.mask_mlp = MLP(dim, hidden_dim=dim, out_dim=mask_dim, num_layers=3)
        self.box_mlp = MLP(dim, hidden_dim=dim, out_dim=4, num_layers=3)
        nn.init.trunc_normal_(self.class_projection.weight, std=0.02)
        # a box starts as the one before it
        for parameter in self.box_mlp.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def named(self, states: Float[Tensor, "b q c"], names: Names) -> Float[Tensor, "b q k"]:
        """Similarity of states, as they are, to the names."""
        return class_logits(self.class_projection(states), names.embeddings, names.logit_scale)

    def shifts(self, states: Float[Tensor, "b q c"]) -> Float[Tensor, "b q 4"]:
        """Changes of boxes as logits; coordinates are not computed in 16 bits under autocast."""
        with torch.autocast(states.device.type, enabled=False):
            return self.box_mlp(states.to(self.norm.weight.dtype))

    def forward(
        self,
        states: Float[Tensor, "b q c"],
        boxes_cxcywh01: Float[Tensor, "b q 4"],
        names: Names,
    ) -> BoxPrediction:
        """A prediction with the given boxes; states are normalised here."""
        states = self.norm(states)
        return BoxPrediction(self.named(states, names), boxes_cxcywh01, self.mask_mlp(states))


class _Memory(NamedTuple):
    """All levels as one sequence, coarse to fine."""

    tokens: Float[Tensor, "b s c"]
    sizes_hw: list[tuple[int, int]]


class _Queries(NamedTuple):
    """Contents and boxes (as logits of centre and size) that the layers start from."""

    states: Float[Tensor, "b q c"]
    box_logits: Float[Tensor, "b q 4"]


class BoxDecoder(nn.Module):
    """Chooses queries from the image, adds learned ones for stuff, and refines their boxes.

    norms_twice, proposal_sizes: see BoxDecoderConfig.
    """

    def __init__(
        self,
        dim: int,
        *,
        shared_dim: int,
        mask_dim: int,
        num_layers: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        num_queries: int,
        num_background: int,
        norms_twice: bool,
        proposal_sizes: Literal["with_stride", "against_stride"],
    ) -> None:
        super().__init__()
        self.dim, self.num_queries, self.num_background = dim, num_queries, num_background
        self.norms_twice, self.proposal_sizes = norms_twice, proposal_sizes
        self.proposal_projection = nn.Linear(dim, dim)
        self.proposal_norm = nn.LayerNorm(dim)
        self.name_projection = nn.Linear(shared_dim, dim, bias=False)
        self.position_mlp = MLP(2 * dim, hidden_dim=dim, out_dim=dim, num_layers=2)
        if num_background:
            self.background_content = nn.Embedding(num_background, dim)
            self.background_boxes = nn.Embedding(num_background, 4)
        self.layers = nn.ModuleList(
            DeformableBoxLayer(
                dim,
                num_heads=num_heads,
                num_levels=num_levels,
                num_points=num_points,
                ffn_dim=ffn_dim,
            )
            for _ in range(num_layers)
        )
        self.heads = BoxHeads(dim, shared_dim=shared_dim, mask_dim=mask_dim)
        nn.init.xavier_uniform_(self.proposal_projection.weight)
        nn.init.zeros_(self.proposal_projection.bias)
        nn.init.trunc_normal_(self.name_projection.weight, std=0.02)

    def forward(
        self,
        pyramid: Pyramid,
        names: Names,
        *,
        canvas_hw: tuple[int, int],
        conditions: Conditions | None = None,
        num_queries: int | None = None,
    ) -> OpenSeeDOutput:
        """Predictions for all names; `conditions` add queries made of names and boxes.

        num_queries: from the image, None for the model's own number.
        """
        memory = _memory(pyramid.levels)
        count = num_queries or self.num_queries
        chosen = self._choose(memory, names, count)
        if self.num_background:
            chosen = self._with_background(chosen)
        selected = self.heads(chosen.states, chosen.box_logits.sigmoid(), names)
        start = _Queries(chosen.states.detach(), chosen.box_logits.detach())
        num_conditions, may_attend = 0, None
        if conditions is not None:
            num_conditions = conditions.count
            may_attend = conditions.may_attend(start.states.shape[1])
            start = self._conditioned(start, conditions, names)
        predictions = self._refine(start, memory, names, may_attend)
        rows = slice(num_conditions, None)
        given = slice(0, num_conditions)
        return OpenSeeDOutput(
            selected=selected,
            layers=tuple(each.rows(rows) for each in predictions),
            denoised=tuple(each.rows(given) for each in predictions if num_conditions),
            mask_features=pyramid.mask_features,
            num_foreground=count,
            canvas_hw=canvas_hw,
        )

    def _choose(self, memory: _Memory, names: Names, count: int) -> _Queries:
        boxes, is_valid = proposals(memory.sizes_hw, sizes=self.proposal_sizes, like=memory.tokens)
        tokens = memory.tokens * is_valid[:, None]
        states = self.proposal_norm(self.proposal_projection(tokens))  # [B, S, C]
        index = most_nameable(self.heads.named(states, names), is_valid, count)[..., None]
        states = states.gather(1, index.expand(-1, -1, self.dim))
        chosen = boxes[index.squeeze(-1)]  # [B, Q, 4]
        return _Queries(states, self.heads.shifts(states) + chosen)

    def _with_background(self, chosen: _Queries) -> _Queries:
        shape = (len(chosen.states), -1, -1)
        content = self.background_content.weight.expand(shape)
        boxes = self.background_boxes.weight.expand(shape)
        return _Queries(
            torch.cat([chosen.states, content], 1), torch.cat([chosen.box_logits, boxes], 1)
        )

    def _conditioned(self, start: _Queries, conditions: Conditions, names: Names) -> _Queries:
        """The queries behind those of the conditions, whose padding is empty."""
        content = self.name_projection(names.embeddings)[conditions.class_ids]  # [B, P, C]
        content = content * conditions.is_used[..., None]
        boxes = logit(conditions.boxes_cxcywh01)
        return _Queries(
            torch.cat([content, start.states], 1), torch.cat([boxes, start.box_logits], 1)
        )

    def _refine(
        self,
        start: _Queries,
        memory: _Memory,
        names: Names,
        may_attend: Bool[Tensor, "1 1 q q"] | None,
    ) -> list[BoxPrediction]:
        """A prediction of the starting queries and one after each layer."""
        states = start.states
        boxes = start.box_logits.sigmoid()
        predictions = [self.heads(states, boxes, names)]
        # a prediction reaches back through the box before it, the next layer does not
        carried = boxes
        for layer in self.layers:
            boxes = boxes.detach()
            positions = self.position_mlp(sine_boxes(boxes, self.dim))
            states = layer(states, positions, boxes, memory, may_attend)
            normed = self.heads.norm(states)
            predicted = (self.heads.shifts(normed) + logit(carried)).sigmoid()
            shown = normed if self.norms_twice else states
            predictions.append(self.heads(shown, predicted, names))
            boxes = (self.heads.shifts(states) + logit(boxes)).sigmoid()
            carried = boxes
        return predictions


def _memory(levels: Sequence[Float[Tensor, "b c _h _w"]]) -> _Memory:
    tokens = torch.cat([map_.flatten(2) for map_ in levels], 2).transpose(1, 2)
    return _Memory(tokens, [(map_.shape[2], map_.shape[3]) for map_ in levels])
