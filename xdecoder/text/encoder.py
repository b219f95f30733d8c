"""The text encoder: a causal transformer whose end-of-text token stands for the sentence."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from xdecoder.layers import SelfAttention, shrink
from xdecoder.outputs import TextFeatures

# LayerNorm of the text encoder. Source: microsoft/X-Decoder, LangEncoder/transformer.py
NORM_EPS = 1e-12


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), as CLIP uses it."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x * torch.sigmoid(1.702 * x)


class TextBlock(nn.Module):
    """Causal self-attention and feed-forward, normalised before each."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention = SelfAttention(dim, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.linear1 = nn.Linear(dim, 4 * dim)
        self.activation = QuickGELU()
        self.linear2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        return self.fed(x + self.attention(self.norm1(x), is_causal=True))

    def fed(self, x: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        """Tokens after the feed-forward."""
        return x + self.linear2(self.activation(self.linear1(self.norm2(x))))


class TextEncoder(nn.Module):
    """Token ids to token and sentence vectors in the shared image-text space.

    Padding is not masked: attention is causal and padding stands last, so that no token before
    the end sees it. out_dim: of the shared space, None for `dim`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_layers: int,
        num_heads: int,
        context_length: int,
        vocabulary_size: int,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary_size, dim)
        self.positions = nn.Parameter(torch.empty(context_length, dim))
        blocks = [TextBlock(dim, num_heads=num_heads) for _ in range(num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.projection = nn.Linear(dim, out_dim or dim, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=dim**-0.5)
        nn.init.normal_(self.positions, std=0.01)
        for block in blocks:
            shrink(block.attention.out_proj, block.linear2, factor=0.5 / num_layers)
        nn.init.normal_(self.projection.weight, std=dim**-0.5)

    def forward(self, token_ids: Int[Tensor, "n t"]) -> TextFeatures:
        """Features of N texts; the end of a text is its first largest id.

        Raises: ValueError if texts are longer than the context.
        """
        length = token_ids.shape[1]
        if length > self.positions.shape[0]:
            raise ValueError(
                f"TextEncoder: texts must have at most {self.positions.shape[0]} tokens "
                f"(model.text.context_length); got {length}. Cut them with the model's tokenizer."
            )
        x = self.token_embedding(token_ids) + self.positions[:length]
        for block in self.blocks:
            x = block(x)
        tokens = self.projection(self.norm(x))
        end = token_ids.argmax(-1)
        index = torch.arange(length, device=token_ids.device)
        return TextFeatures(
            tokens=tokens,
            sentence=tokens[torch.arange(len(tokens), device=tokens.device), end],
            is_padding=index[None] > end[:, None],
        )
