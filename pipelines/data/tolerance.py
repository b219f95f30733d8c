"""Damaged samples of a run: told once each, counted over all ranks, and too many of them refused.

    worker --Damage--> stream --> DamageCount.add        on each rank, at once, to its log
                                  DamageCount.settle     all ranks together, at logging steps

A rank that stopped by itself would leave the others waiting for it; so the count is that of all
ranks, the same on each, and all of them raise in the same step.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.errors import DataError

_log = logging.getLogger(__name__)
# more names of damaged samples in one message do not help
_MAX_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A sample that another one took the place of."""

    task: str
    epoch: int
    shard: str
    key: str
    reason: str

    def facts(self) -> dict[str, Any]:
        """The same under the names of events.jsonl."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.shard}: sample {self.key} {self.reason}"


class DamageCount:
    """How many samples of a run were damaged, over all ranks and restarts.

    max_damaged, max_share: both must be exceeded for the run to end. total: as the checkpoint has
    it. gather: the value of every rank on every rank.
    """

    def __init__(
        self,
        *,
        max_damaged: int,
        max_share: float,
        total: int,
        gather: Callable[[list[Damage]], list[list[Damage]]],
    ) -> None:
        self.total = total
        self._max_damaged, self._max_share = max_damaged, max_share
        self._gather = gather
        self._unsettled: list[Damage] = []
        self._newest: tuple[Damage, ...] = ()

    def add(self, damage: Damage) -> None:
        """Log a damaged sample of this rank and keep it until `settle`."""
        _log.warning("skipped a damaged sample: %s", damage)
        self._unsettled.append(damage)

    def settle(self) -> tuple[Damage, ...]:
        """The damaged samples of all ranks since the last call; `total` has grown by them."""
        own, self._unsettled = self._unsettled, []
        self._newest = tuple(damage for rank in self._gather(own) for damage in rank)
        self.total += len(self._newest)
        return self._newest

    def check(self, num_drawn: int) -> None:
        """Nothing, while there are few.

        Raises:
            DataError: more of the drawn samples were damaged than the run tolerates.
        """
        share = self.total / max(1, num_drawn)
        if self.total <= self._max_damaged or share <= self._max_share:
            return
        named = "\n".join(str(damage) for damage in self._newest[:_MAX_NAMED])
        raise DataError(
            f"data: at most {self._max_damaged} samples, or a share of {self._max_share:g}, may be "
            f"damaged; {self.total} of {num_drawn} drawn were. Copy or prepare the shards again, "
            f"or raise data.max_damaged and data.max_damaged_share. The newest:\n{named}"
        )
