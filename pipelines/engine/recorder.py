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
from pipelines.engine.skipped import SkippedSteps
from pipelines.engine.spikes import SpikeWatch

_LAYER = re.compile(r"/\d+$")
Row = dict[str, float | int]


@dataclass(kw_only=True)
class StepRecord:
    """What one step leaves behind; tensors stay on the device.

    keys: of the samples in this rank's batches. terms: weighted loss terms.
    loss_scale: that the gradients of this step had, in fp16; there a gradient norm that is not
    finite is no error but a step that was left out while the scale falls.
    task_norms: of the gradients of single tasks, the same on every rank, of measured steps.
    is_spike: left out because its loss jumped. complaint: why a loss could not be computed.
    """

    step: int
    keys: tuple[str, ...]
    terms: dict[str, Tensor]
    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float
    loss_scale: float | None = None
    data_seconds: float = 0.0
    task_norms: Mapping[str, Tensor] = field(default_factory=dict)
    is_spike: bool = False
    complaint: str = ""


@dataclass(kw_only=True)
class Recorder:
    """Holds the records of a few steps, and turns them into one row per step.

    skipped: what counts steps that were left out. spikes: what judges the rows.
    """

    group: Group
    skipped: SkippedSteps = field(default_factory=SkippedSteps)
    spikes: SpikeWatch | None = None
    records: list[StepRecord] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)

    def add(self, record: StepRecord) -> None:
        """Keep a record until the next `rows`."""
        self.records.append(record)

    def restart(self) -> None:
        """Count time from now: what passed since the last `rows` belongs to no step."""
        self._since = time.perf_counter()

    def rows(self) -> list[Row]:
        """One row per held step, averaged over ranks; the last one also has the timing.

        Raises:
            NonFiniteLossError: too many steps were left out; on all ranks.
        """
        if not self.records:
            return []
        records, self.records = self.records, []
        values = self.group.gather(_to_numbers(records))
        rows = []
        for record, ranks in zip(records, zip(*values, strict=True), strict=True):
            self._count_left_out(record, ranks)
            rows.append(_row(record, ranks))
            if self.spikes is not None:
                self.spikes.see_row(rows[-1], is_skipped=record.is_spike)
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

    def _count_left_out(self, record: StepRecord, ranks: Sequence[Mapping[str, float]]) -> None:
        bad = sorted(
            {name for values in ranks for name, value in values.items() if not math.isfinite(value)}
        )
        is_meant = record.loss_scale is not None or record.is_spike
        if not bad or (bad == ["gradient_norm"] and is_meant):
            self.skipped.saw_good_step()
            return
        # every rank sees the same numbers, so every rank comes here
        gathered = self.group.gather((record.keys, record.complaint))
        keys = [rank for rank, _ in gathered]
        complaint = next((text for _, text in gathered if text), "")
        terms = {name: [values.get(name) for values in ranks] for name in bad}
        self.skipped.saw_bad_step(record.step, keys, terms, complaint=complaint)


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
    norms = {f"grad_norm/{task}": norm.item() for task, norm in record.task_norms.items()}
    row |= {name: norm for name, norm in norms.items() if math.isfinite(norm)}
    if not math.isfinite(row["gradient_norm"]):
        row["gradient_norm"], row["left_out"] = 0.0, 1
    if not math.isfinite(row["loss"]):
        # JSON has no NaN; what each rank had is in the event
        return {name: value for name, value in row.items() if name != "loss"}
    # a term that a rank does not have counts as zero there, so that terms add up to the loss
    for values in ranks:
        for name, value in values.items():
            if "/" not in name:
                continue
            term, task = _LAYER.sub("", name), f"loss/{name.split('/')[0]}"
            for key in (term, task):
                row[key] = row.get(key, 0.0) + value / len(ranks)
    return row
