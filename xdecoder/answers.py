"""The answer head: a question's rows of the decoder to one of a fixed list of answers.

Source: arXiv 2212.11270 section 3.3 and microsoft/X-Decoder, branch xgpt: learned contents, the
question's tokens as positions, the last token's row through two linear layers.
"""

from jaxtyping import Float
from torch import Tensor, nn

HIDDEN_DIM = 1024


class AnswerHead(nn.Module):
    """Contents of question rows, and logits of the answers."""

    def __init__(self, dim: int, *, context_length: int, num_answers: int) -> None:
        super().__init__()
        self.content = nn.Embedding(context_length, dim)
        self.hidden = nn.Linear(dim, HIDDEN_DIM)
        self.norm = nn.LayerNorm(HIDDEN_DIM)
        self.activation = nn.GELU()
        self.output = nn.Linear(HIDDEN_DIM, num_answers)
        nn.init.normal_(self.content.weight, std=0.02)
        nn.init.trunc_normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(self, states: Float[Tensor, "b c"]) -> Float[Tensor, "b a"]:
        return self.output(self.activation(self.norm(self.hidden(states))))
