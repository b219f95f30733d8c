"""The factor on the loss that keeps float16 gradients away from zero."""

from collections.abc import Mapping
from typing import Any

from pipelines.config import ParallelConfig
from pipelines.errors import NonFiniteLossError

# Source: torch.amp.GradScaler
_GROWTH, _BACKOFF = 2.0, 0.5


class LossScale:
    """Doubles after a number of steps without overflow, halves at each overflow.

    The same decisions on every rank, because the gradient norm that they follow is.
    """

    def __init__(self, value: float, *, window: int) -> None:
        self.value = value
        self._window = window
        self._num_good_steps = 0

    def update(self, *, is_finite: bool) -> None:
        """Take note of a step: whether its gradients were finite, so that it was applied.

        Raises:
            NonFiniteLossError: gradients overflow even without a scale.
        """
        if not is_finite:
            self._num_good_steps = 0
            self.value *= _BACKOFF
            if self.value < 1:
                raise NonFiniteLossError(
                    "fp16: gradients must become finite as the loss scale falls; at a scale of 1 "
                    "they still are not. Set parallel.precision=bf16, or lower "
                    "optimizer.learning_rate; the newest checkpoint is from before this."
                )
            return
        self._num_good_steps += 1
        if self._num_good_steps == self._window:
            self._num_good_steps = 0
            self.value *= _GROWTH

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to scale as this one would."""
        return {"value": self.value, "num_good_steps": self._num_good_steps}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.value = state["value"]
        self._num_good_steps = state["num_good_steps"]


def build_loss_scale(config: ParallelConfig) -> LossScale | None:
    """The scale of a run in fp16; other precisions have the range of float32 and need none."""
    if config.precision != "fp16":
        return None
    return LossScale(config.initial_loss_scale, window=config.loss_scale_window)
