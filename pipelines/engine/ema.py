"""A moving average of the weights, which evaluates better than the weights themselves."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """The average of a model's parameters over steps, in float32, beside the model.

    The decay grows from 0 towards its value, as (1 + step) / (10 + step), so that the random
    weights of the first steps are forgotten. Source: tf.train.ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().clone().float() for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights that the model has after its step number `step`, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        named = dict(model.named_parameters())
        current = [named[name].float() for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over averages that were saved under the same names."""
        for name, average in self.weights.items():
            average.copy_(weights[name])
