"""From loss tensors on the device to rows of numbers, at logging steps only."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipelines.engine.distributed import Group
from pipelines.errors import NonFiniteLossError

_LAYER = re.compile(r"/\d+$")
Row = dict[str, float | int]


@dataclass(kw_only=True)
class StepRecord:
    """What one step leaves behind; tensors stay on the device.

    keys: of the samples in this rank's batches. terms: weighted loss terms.
    loss_scale: that the gradients of this step had, in fp16; there a gradient norm that is not
    finite is no error but a step that was left out while the scale falls.
    """

    step: int
    keys: tuple[str, ...]
    terms: dict[str, Tensor]
    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float
    loss_scale: float | None = None
    data_seconds: float = 0.0


@dataclass(kw_only=True)
class Recorder:
    """Holds the records of a few steps, and turns them into one row per step."""

    group: Group
    records: list[StepRecord] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)

    def add(self, record: StepRecord) -> None:
        """Keep a record until the next `rows`."""
        self.records.append(record)

    def rows(self) -> list[Row]:
        """One row per held step, averaged over ranks; the last one also has the timing.

        Raises:
            NonFiniteLossError: naming the first bad step, its tasks, keys and terms, on all ranks.
        """
        if not self.records:
            return []
        records, self.records = self.records, []
        values = self.group.gather(_to_numbers(records))
        for index, record in enumerate(records):
            self._require_finite(record, [ranks[index] for ranks in values])
        rows = [
            _row(record, [ranks[index] for ranks in values]) for index, record in enumerate(records)
        ]
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        data_seconds = sum(record.data_seconds for record in records)
        num_images = sum(len(record.keys) for record in records) * self.group.place.world_size
        rows[-1] |= {
            "seconds_per_step": elapsed / len(records),
            "data_wait": data_seconds / elapsed,
            "images_per_second": num_images / elapsed,
        }
        return rows

    def _require_finite(self, record: StepRecord, ranks: Sequence[Mapping[str, float]]) -> None:
        bad = sorted(
            {name for values in ranks for name, value in values.items() if not math.isfinite(value)}
        )
        if not bad or (bad == ["gradient_norm"] and record.loss_scale is not None):
            return
        # every rank sees the same numbers, so every rank comes here
        keys = [key for rank in self.group.gather(record.keys) for key in rank]
        tasks = sorted({name.split("/")[0] for name in bad if "/" in name}) or ["all"]
        terms = {name: [values.get(name) for values in ranks] for name in bad}
        raise NonFiniteLossError(
            f"step {record.step}: every loss must be finite; task {', '.join(tasks)} has {terms} "
            f"(one value per rank). Keys of the batches: {', '.join(keys)}. Look at these samples, "
            "or lower optimizer.learning_rate; the newest checkpoint is from before this step."
        )


def _to_numbers(records: Sequence[StepRecord]) -> list[dict[str, float]]:
    """All values of all records, through a single copy from the device."""
    named = [
        {**record.terms, "loss": record.loss, "gradient_norm": record.gradient_norm}
        for record in records
    ]
    flat = torch.stack(
        [value.detach().float().reshape(()) for values in named for value in values.values()]
    )
    numbers = iter(flat.tolist())
    return [{name: next(numbers) for name in values} for values in named]


def _row(record: StepRecord, ranks: Sequence[Mapping[str, float]]) -> Row:
    row: dict[str, Any] = {
        "step": record.step,
        "loss": sum(values["loss"] for values in ranks) / len(ranks),
        "learning_rate": record.learning_rate,
        "gradient_norm": ranks[0]["gradient_norm"],
    }
    if record.loss_scale is not None:
        row["loss_scale"] = record.loss_scale
    if not math.isfinite(row["gradient_norm"]):
        row["gradient_norm"], row["left_out"] = 0.0, 1
    # a term that a rank does not have counts as zero there, so that terms add up to the loss
    for values in ranks:
        for name, value in values.items():
            if "/" not in name:
                continue
            term, task = _LAYER.sub("", name), f"loss/{name.split('/')[0]}"
            for key in (term, task):
                row[key] = row.get(key, 0.0) + value / len(ranks)
    return row
