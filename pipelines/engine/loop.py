"""The training loop: one function for a step, one for a run.

    stream --(batches, data state)--> train_step --record--> recorder --rows--> trackers
                                          |
                                   TrainState.step += 1; at boundaries: save, draw, stop, go back

Losses stay on the device until a logging step. Whatever must agree between ranks (stop, save)
is decided at a step boundary, on every rank alike.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.config import RunConfig
from pipelines.data.mixture import num_drawn
from pipelines.data.tolerance import DamageCount
from pipelines.engine.backend import Seen
from pipelines.engine.checkpoint import Checkpointer
from pipelines.engine.distributed import Group
from pipelines.engine.fence import Fence
from pipelines.engine.machine import memory_gib, to_device
from pipelines.engine.progress import ProgressLine
from pipelines.engine.recorder import Recorder, Row, StepRecord
from pipelines.engine.rollback import Rollbacks
from pipelines.engine.schedule import learning_rate_factor
from pipelines.engine.signals import StopFlag
from pipelines.engine.skipped import SkippedSteps, poisoned, poisoned_unless_finite
from pipelines.engine.spikes import SpikeWatch
from pipelines.engine.state import TrainState
from pipelines.engine.task_norms import Measurement, TaskNorms
from pipelines.engine.utilisation import Utilisation
from pipelines.engine.wall_time import WallTime
from pipelines.engine.watchdog import Watchdog
from pipelines.errors import ExitCode
from pipelines.tracking.base import Tracker
from pipelines.tracking.jsonl import EventLog
from xdecoder.batch import Batch
from xdecoder.losses.draws import Draws
from xdecoder.tasks import MultiTask

Stream = Iterator[tuple[Sequence[Batch], dict[str, Any]]]
# draws predictions of a model in evaluation mode on a training batch: step, model, batches
DrawPanels = Callable[[int, nn.Module, Sequence[Batch]], Mapping[str, Path]]

# the reason to stop that is no signal
WALL_TIME = "wall time"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the loop talks to besides the state: other ranks, files, screens, signals, the clock.

    wall_time, fence: of the job and its run folder, on the main rank only. damage: what the stream
    could not use. skipped, spikes: what counts steps that were left out, and what judges losses.
    rollbacks: what takes the run back where a loss jumps, else such a step is only left out.
    task_norms: what measures the gradients of single tasks.
    """

    group: Group
    device: torch.device
    checkpointer: Checkpointer
    trackers: tuple[Tracker, ...]
    events: EventLog | None
    stop: StopFlag
    wall_time: WallTime | None = None
    damage: DamageCount | None = None
    skipped: SkippedSteps = field(default_factory=SkippedSteps)
    spikes: SpikeWatch | None = None
    rollbacks: Rollbacks | None = None
    task_norms: TaskNorms | None = None
    watchdog: Watchdog | None = None
    utilisation: Utilisation | None = None
    fence: Fence | None = None
    draw_panels: DrawPanels | None = None


def train(
    state: TrainState, losses: MultiTask, stream: Stream, config: RunConfig, around: Surroundings
) -> ExitCode:
    """Why the loop ended: after `config.steps`, at a signal, or before the time limit of the job.

    The state is saved before every return. Raises what `Recorder.rows` and the two checks do.
    """
    recorder = Recorder(group=around.group, skipped=around.skipped, spikes=around.spikes)
    progress = ProgressLine(
        num_steps=config.steps, first_step=state.step, is_shown=around.group.place.is_main
    )
    with progress:
        while state.step < config.steps:
            record, batches = train_step(state, losses, stream, config, around)
            _remember(record, recorder, around)
            if around.utilisation is not None:
                around.utilisation.count_once(losses, batches, config.seed)
            if record.is_spike and _went_back(recorder, progress, state, around):
                continue
            is_stopping = around.group.any_is_true(_wants_to_stop(around))
            is_last = is_stopping or state.step == config.steps
            is_saving = is_last or state.step % config.checkpoint.every_steps == 0
            is_drawing = _is_due(state.step, config.tracking.panels_every)
            # rows go first: they refuse a non-finite loss, and a checkpoint implies its rows
            if is_saving or is_drawing or _is_due(state.step, config.tracking.log_every):
                row = _report(recorder, progress, state, around)
            if is_saving:
                _save(state, row, around)
            if is_last:
                around.checkpointer.finish()
            _tell_saved(around)
            if is_drawing:
                _draw(state, batches, around)
            if around.watchdog is not None:
                around.watchdog.beat(state.step)
            if is_stopping:
                return _stopped(state, around)
    return ExitCode.FINISHED


def train_step(
    state: TrainState, losses: MultiTask, stream: Stream, config: RunConfig, around: Surroundings
) -> tuple[StepRecord, Sequence[Batch]]:
    """The record of one optimizer step, and its last batches; the state has moved on."""
    num_micro, rank = config.parallel.accumulation, around.group.place.rank
    began = time.perf_counter()
    micro_batches = [next(stream) for _ in range(num_micro)]
    data_seconds = time.perf_counter() - began

    state.data = micro_batches[-1][1]
    on_device = [to_device(tuple(batches), around.device) for batches, _ in micro_batches]
    counts = _mean_counts(losses, on_device)
    sums: dict[str, torch.Tensor] = {}
    is_spike = False
    measurement = _begin_measurement(state, around)
    seen = Seen(measure=measurement)
    for index, batches in enumerate(on_device):
        draws = Draws(config.seed, state.step * num_micro + index, rank)
        terms = state.backend.forward(batches, draws, counts, seen)
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term.detach() / num_micro
        loss = poisoned_unless_finite(sum_of(terms))
        if around.spikes is not None and index == num_micro - 1:
            is_spike = around.spikes.must_skip(sum_of(sums))
        state.backend.backward(poisoned(loss) if is_spike else loss)

    factor = learning_rate_factor(config.schedule, state.step, config.steps)
    scale = state.backend.loss_scale
    loss_scale = None if scale is None else scale.value
    gradient_norm = state.backend.step(factor)
    state.step += 1
    if state.ema is not None:
        state.ema.update(state.backend.pieces(), state.step)
    record = StepRecord(
        step=state.step,
        keys=tuple(key for batches in on_device for batch in batches for key in batch.keys),
        terms=sums,
        loss=sum_of(sums),
        gradient_norm=gradient_norm,
        learning_rate=config.optimizer.learning_rate * factor,
        loss_scale=loss_scale,
        data_seconds=data_seconds,
        task_norms=measurement.norms() if measurement else {},
        is_spike=is_spike,
        complaint=seen.complaint,
    )
    return record, on_device[-1]


def _begin_measurement(state: TrainState, around: Surroundings) -> Measurement | None:
    if around.task_norms is None:
        return None
    scale = state.backend.loss_scale
    return around.task_norms.begin(state.step + 1, loss_scale=scale.value if scale else 1.0)


def sum_of(terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The total loss, added in the order of the terms."""
    return torch.stack([term.float() for term in terms.values()]).sum()


def _mean_counts(
    losses: MultiTask, micro_batches: Sequence[Sequence[Batch]]
) -> dict[str, float] | None:
    """What accumulated losses are divided by, so that they equal those of one large batch."""
    if len(micro_batches) == 1:
        return None
    counts = [losses.counts(batches) for batches in micro_batches]
    return {name: sum(count[name] for count in counts) / len(counts) for name in counts[0]}


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _remember(record: StepRecord, recorder: Recorder, around: Surroundings) -> None:
    recorder.add(record)
    if around.rollbacks is not None:
        around.rollbacks.saw_step(record.step, record.keys)


def _save(state: TrainState, row: Row, around: Surroundings) -> None:
    around.checkpointer.save(state, metrics=row)
    if around.rollbacks is not None:
        around.rollbacks.saw_save(state.step)


def _report(
    recorder: Recorder, progress: ProgressLine, state: TrainState, around: Surroundings
) -> Row:
    """The row of the last step, after all new ones were shown and tracked."""
    around.group.main_does(lambda: around.fence.check() if around.fence else None)
    rows = recorder.rows()
    if not rows:
        return {}
    memory = memory_gib(around.device)
    rows[-1]["memory_gib"] = memory
    if around.utilisation is not None:
        rows[-1] |= around.utilisation.columns(rows[-1]["seconds_per_step"])
    if around.damage is not None:
        rows[-1]["damaged_samples"] = _count_damage(state, around.damage, around.events)
    _keep_watch_state(state, around)
    progress.show(rows[-1], memory_gib=memory)
    for tracker in around.trackers:
        tracker.log_rows(rows)
    if around.damage is not None:
        around.damage.check(num_drawn(state.data or {}))
    return rows[-1]


def _went_back(
    recorder: Recorder, progress: ProgressLine, state: TrainState, around: Surroundings
) -> bool:
    """Whether the state is that of an earlier step now, because the loss of the last one jumped."""
    rollbacks, spikes = around.rollbacks, around.spikes
    folder = rollbacks.find(around.checkpointer) if rollbacks else None
    if rollbacks is None or spikes is None or folder is None:
        return False
    # the rows of steps that are undone are kept beside those that count
    _report(recorder, progress, state, around)
    rollbacks.go_back(
        state, folder, checkpointer=around.checkpointer, spikes=spikes, group=around.group
    )
    for tracker in around.trackers:
        tracker.go_back(state.step)
    _tell_saved(around)
    if around.watchdog is not None:
        around.watchdog.beat(state.step)
    recorder.restart()
    return True


def _keep_watch_state(state: TrainState, around: Surroundings) -> None:
    """Save what a resumed run needs to leave out the steps that this one would."""
    kept: dict[str, Any] = {}
    if around.skipped.total:
        kept["num_skipped"] = around.skipped.total
    if around.spikes is not None and around.spikes.recent:
        kept["recent_losses"] = around.spikes.recent
    if around.rollbacks is not None and around.rollbacks.total:
        kept["num_rollbacks"] = around.rollbacks.total
    if kept:
        state.data = {**(state.data or {}), **kept}


def _count_damage(state: TrainState, damage: DamageCount, events: EventLog | None) -> int:
    """The damaged samples of the run so far; the number is saved with the state of the data."""
    for found in damage.settle():
        if events is not None:
            events.write("damaged_sample", {"step": state.step, **found.facts()})
    state.data = {**(state.data or {}), "num_damaged": damage.total}
    return damage.total


def _wants_to_stop(around: Surroundings) -> bool:
    """Whether this rank has a reason to stop; the end of the job is one."""
    if around.wall_time is not None:
        around.wall_time.saw_step()
        if around.wall_time.is_nearly_over():
            around.stop.request(WALL_TIME)
    return around.stop.is_set


def _tell_saved(around: Surroundings) -> None:
    """Write down the checkpoints that became complete; they are written beside the training."""
    for saved in around.checkpointer.completed():
        if around.wall_time is not None:
            around.wall_time.saw_save(saved.seconds)
        if around.events is not None:
            facts = {"step": saved.step, "folder": saved.folder.name, "seconds": saved.seconds}
            around.events.write("checkpoint", facts)


def _stopped(state: TrainState, around: Surroundings) -> ExitCode:
    """The exit code that all ranks leave with: that of the first rank that has a reason."""
    reasons = around.group.gather(around.stop.reason)
    rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason is not None)
    if around.events is not None:
        facts = {"step": state.step, "signal": reason, "rank": rank}
        around.events.write("stopped", {**facts, "num_signals": around.stop.num_signals})
    return StopFlag.exit_code_of(reason)


def _draw(state: TrainState, batches: Sequence[Batch], around: Surroundings) -> None:
    if around.draw_panels is None:
        return
    with evaluating(state) as model:
        if around.group.place.is_main:
            pictures = around.draw_panels(state.step, model, batches)
            for tracker in around.trackers:
                tracker.log_pictures(state.step, pictures)
    around.group.barrier()


@contextmanager
def evaluating(state: TrainState) -> Iterator[nn.Module]:
    """A model in evaluation mode with averaged weights, for rank 0; all ranks come here together.

    Training continues as if untouched. Where weights are sharded, it is a copy, whole.
    """
    if state.build_model is not None:
        with torch.no_grad(), torch.random.fork_rng():
            yield _whole_copy(state, state.build_model)
        return
    weights = {name: value.detach().clone() for name, value in state.model.named_parameters()}
    with torch.no_grad(), torch.random.fork_rng():
        _copy_weights(state.model, state.ema.weights if state.ema else {})
        state.model.eval()
        try:
            yield state.model
        finally:
            state.model.train()
            _copy_weights(state.model, weights)


def _whole_copy(state: TrainState, build_model: Callable[[], nn.Module]) -> nn.Module:
    weights = state.backend.model_state()
    averages = state.backend.whole(state.ema.weights) if state.ema else {}
    if not weights:
        # not rank 0, which has no use for a copy
        return state.model
    model = build_model()
    model.load_state_dict(weights)
    _copy_weights(model, averages)
    return model.eval()


def _copy_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    named = dict(model.named_parameters())
    for name, value in weights.items():
        named[name].copy_(value)
