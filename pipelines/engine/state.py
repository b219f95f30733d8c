"""Everything that a run needs to go on as if it had never stopped."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipelines.engine.backend import Backend
from pipelines.engine.ema import Ema


@dataclass(kw_only=True)
class TrainState:
    """The state between two steps; a checkpoint is this, written down.

    step: optimizer steps that were taken. data: what the stream gave with its last batches, the
    same on every rank. The schedule and the draws of a step follow from (seed, step, rank) and
    have no state; the global generators of each rank are saved beside this
    (`engine/generators.py`). build_model: makes a model of this shape, where `model` itself
    cannot be used by one rank alone because its weights are sharded.
    """

    model: nn.Module
    backend: Backend
    ema: Ema | None
    step: int = 0
    data: dict[str, Any] | None = None
    build_model: Callable[[], nn.Module] | None = None
