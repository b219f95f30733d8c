"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math
from bisect import bisect_right

from pipelines.config import ScheduleConfig


def learning_rate_factor(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """What the base learning rates are multiplied with in step `step` of 0..num_steps-1."""
    progress = step / num_steps
    ramp = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.kind == "poly":
        # falls from the first step on, during the warm-up too
        return ramp * (1.0 - progress) ** config.power
    if step < config.warmup_steps:
        return ramp
    if config.kind == "constant":
        return 1.0
    if config.kind == "multistep":
        return config.decay_factor ** bisect_right(config.milestones, progress)
    span = max(1, num_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / span))
    return config.final_factor + (1 - config.final_factor) * cosine
