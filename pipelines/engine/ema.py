"""A moving average of the weights, which evaluates better than the weights themselves."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Ema:
    """The average over steps of named weights, in float32, beside them.

    The weights are the pieces that one rank keeps (`Backend.pieces`), so that under ZeRO-3 the
    average is sharded as they are. The decay grows from 0 towards its value, as
    (1 + step) / (10 + step), so that the random weights of the first steps are forgotten.
    Source: tf.train.ExponentialMovingAverage.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: value.detach().clone().float() for name, value in weights.items()
        }

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Move towards the weights as they are after step number `step`, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [weights[name].float() for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over averages that were saved under the same names."""
        for name, average in self.weights.items():
            average.copy_(weights[name])
