"""What a decoder row says: a vector beside text, a mask, the next word."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xdecoder.layers import MLP
from xdecoder.outputs import LayerPrediction
from xdecoder.queries import QueryLayout

# added to lengths before dividing, and the largest similarity scale of contrastive terms.
# Source: microsoft/X-Decoder, modeling/interface/xdecoder.py and modeling/language/loss.py
UNIT_EPS = 1e-7
MAX_LOGIT_SCALE = 100.0


def unit(x: Float[Tensor, "*rows c"]) -> Float[Tensor, "*rows c"]:
    """Rows of length one."""
    return x / (x.norm(dim=-1, keepdim=True) + UNIT_EPS)


def class_logits(
    embeddings: Float[Tensor, "*rows c"],
    class_embeddings: Float[Tensor, "k c"],
    logit_scale: Float[Tensor, " 1"],
) -> Float[Tensor, "*rows k"]:
    """Scaled cosine similarity of rows and unit class vectors; the scale is not clamped."""
    return logit_scale.exp() * unit(embeddings) @ class_embeddings.t()


def clamped_similarity(
    embeddings: Float[Tensor, "*rows c"],
    texts: Float[Tensor, "k c"],
    logit_scale: Float[Tensor, " 1"],
) -> Float[Tensor, "*rows k"]:
    """Scaled cosine similarity of two un-normalised sides; the scale is at most 100."""
    scale = logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
    return scale * unit(embeddings) @ unit(texts).t()


class PredictionHeads(nn.Module):
    """One set of heads for the learned queries and for every layer's states."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.class_projection = nn.Linear(dim, dim, bias=False)
        self.caption_projection = nn.Linear(dim, dim, bias=False)
        self.mask_mlp = MLP(dim, hidden_dim=dim, out_dim=dim, num_layers=3)
        nn.init.trunc_normal_(self.class_projection.weight, std=0.02)
        nn.init.normal_(self.caption_projection.weight, std=dim**-0.5)

    def forward(self, states: Float[Tensor, "b r c"], layout: QueryLayout) -> LayerPrediction:
        """Predictions of pixel rows and caption rows; phrase tokens predict nothing."""
        states = self.norm(states[:, layout.cross_rows])
        # the global row's own state only says how much each latent counts
        weights = _global_weights(states, layout)  # [B, 1, Q]
        rows = torch.cat(
            [
                states[:, layout.latents],
                weights @ states[:, layout.latents],
                states[:, layout.grounding],
            ],
            dim=1,
        )
        captions = states[:, layout.caption]
        return LayerPrediction(
            embeddings=self.class_projection(rows),
            mask_embeddings=self.mask_mlp(rows),
            caption_states=self.caption_projection(captions) if layout.num_caption else None,
        )


def _global_weights(states: Tensor, layout: QueryLayout) -> Tensor:
    directions = unit(states[:, layout.objects])
    similarity = directions[:, layout.global_query] @ directions[:, layout.latents].transpose(1, 2)
    return similarity.softmax(-1)
