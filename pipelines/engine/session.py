"""A run from its configuration to its exit code: builds everything, resumes, trains, leaves."""

import json
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from pipelines.config import RunConfig
from pipelines.data.stream import DataStream, build_stream
from pipelines.data.tolerance import DamageCount
from pipelines.engine.backend import Backend, TrainedModule
from pipelines.engine.checkpoint import Checkpointer, find_checkpoint
from pipelines.engine.checkpoint_files import write_text_atomically
from pipelines.engine.distributed import Group
from pipelines.engine.ema import Ema
from pipelines.engine.fence import Fence
from pipelines.engine.generators import seed_generators
from pipelines.engine.leaving import prepare_leaving
from pipelines.engine.loop import DrawPanels, Stream, Surroundings, train
from pipelines.engine.loss_scale import build_loss_scale
from pipelines.engine.machine import describe, prepare_process
from pipelines.engine.optim import ParameterGroup, freeze, group_table, parameter_groups
from pipelines.engine.rollback import Rollbacks
from pipelines.engine.run_folder import prepare_folder
from pipelines.engine.signals import StopFlag
from pipelines.engine.skipped import SkippedSteps
from pipelines.engine.spikes import SpikeWatch
from pipelines.engine.state import TrainState
from pipelines.engine.task_norms import TaskNorms
from pipelines.engine.torch_backend import TorchBackend
from pipelines.engine.utilisation import build_utilisation
from pipelines.engine.watchdog import Watchdog, stall_hint
from pipelines.errors import CheckpointError, ExitCode, PipelineError
from pipelines.families import build_model_of, build_tasks_of
from pipelines.initial_weights import load_initial_weights
from pipelines.overrides import to_json
from pipelines.tracking.base import Tracker
from pipelines.tracking.jsonl import EventLog, JsonlTracker, count_starts
from xdecoder.checkpointing import checkpoint_activations
from xdecoder.lora import add_lora
from xdecoder.tasks import MultiTask

_log = logging.getLogger(__name__)


def build_losses(config: RunConfig, device: torch.device) -> MultiTask:
    """The model and its tasks in training mode, with the weights of `init_from` where set."""
    model = build_model_of(config.model)
    if config.init_from:
        load_initial_weights(model, Path(config.init_from))
    freeze(model, config.optimizer.frozen)
    if config.lora.rank:
        lora = config.lora
        add_lora(model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
    return MultiTask(model, build_tasks_of(config)).to(device).train()


@dataclass(frozen=True, kw_only=True)
class Request:
    """How a run is started, beside what it is.

    resume: auto = from the newest complete checkpoint of the run folder if there is one;
    never = only in a folder without checkpoints; else the path of a checkpoint or run.
    asked: recipe and assignments, for config.json. make_losses, make_stream: what is trained on
    what, for a run of other parts.
    """

    resume: str = "auto"
    asked: Mapping[str, Any] = field(default_factory=dict)
    draw_panels: DrawPanels | None = None
    make_losses: Callable[[RunConfig, torch.device], MultiTask] = build_losses
    make_stream: Callable[..., Stream] = build_stream


def run(
    config: RunConfig, request: Request, *, group: Group, device: torch.device, stop: StopFlag
) -> ExitCode:
    """Why the run ended, after training, or continuing to train, in its run folder."""
    is_cuda = device.type == "cuda"
    prepare_process(config.parallel, deterministic=config.deterministic, is_cuda=is_cuda)
    run_id, restart = _open_folder(config, request, group)
    fence = Fence(config.run_folder) if group.place.is_main else None
    with _log_file(config.run_folder, restart=restart, rank=group.place.rank):
        checkpointer = Checkpointer(
            config.run_folder / "checkpoints", config=config, group=group, fence=fence
        )
        source, complaints = _choose_source(request, checkpointer)
        state, losses = _build_state(config, request, group=group, device=device)
        if source is not None:
            checkpointer.restore(state, source)
        events = EventLog(config.run_folder, restart=restart) if group.place.is_main else None
        _tell_start(events, state, source, complaints, describe(device, group.place))
        wall_time = prepare_leaving(config.preemption, stop, model=state.model, events=events)
        trackers = _open_trackers(config, run_id, restart, state.step) if events else ()
        stream = request.make_stream(
            config.data,
            rank=group.place.rank,
            world_size=group.place.world_size,
            seed=config.seed,
            state=state.data,
        )
        damage = _count_damage(stream, config, state, device, group)
        around = Surroundings(
            group=group,
            device=device,
            checkpointer=checkpointer,
            trackers=trackers,
            events=events,
            stop=stop,
            wall_time=wall_time,
            damage=damage,
            skipped=_count_skipped(config, state, events),
            spikes=_watch_spikes(config, state, group, events),
            rollbacks=_count_rollbacks(config, state, events),
            task_norms=_measure_tasks(config, state, group),
            watchdog=_watch_rank(config, state, group, restart, events),
            utilisation=build_utilisation(device, config.parallel),
            fence=fence,
            draw_panels=request.draw_panels,
        )
        return _train_and_tell(state, losses, stream, config, around)


def _count_damage(
    stream: Stream, config: RunConfig, state: TrainState, device: torch.device, group: Group
) -> DamageCount | None:
    """What counts the damaged samples of a stream of shards, which delivers to the device."""
    if not isinstance(stream, DataStream):
        return None
    damage = DamageCount(
        max_damaged=config.data.max_damaged,
        max_share=config.data.max_damaged_share,
        total=(state.data or {}).get("num_damaged", 0),
        gather=group.gather,
    )
    stream.device, stream.on_damage = device, damage.add
    return damage


def _count_skipped(config: RunConfig, state: TrainState, events: EventLog | None) -> SkippedSteps:
    return SkippedSteps(
        max_total=config.watch.max_skipped,
        max_in_a_row=config.watch.max_skipped_in_a_row,
        total=(state.data or {}).get("num_skipped", 0),
        tell=events.write if events else None,
    )


def _watch_spikes(
    config: RunConfig, state: TrainState, group: Group, events: EventLog | None
) -> SpikeWatch:
    return SpikeWatch(
        action=config.watch.spikes,
        sigmas=config.watch.spike_sigmas,
        window=config.watch.spike_window,
        recent=(state.data or {}).get("recent_losses", ()),
        gather=group.gather,
        tell=events.write if events else None,
    )


def _count_rollbacks(
    config: RunConfig, state: TrainState, events: EventLog | None
) -> Rollbacks | None:
    if config.watch.spikes != "rollback":
        return None
    return Rollbacks(
        max_total=config.watch.max_rollbacks,
        step=state.step,
        total=(state.data or {}).get("num_rollbacks", 0),
        tell=events.write if events else None,
    )


def _measure_tasks(config: RunConfig, state: TrainState, group: Group) -> TaskNorms | None:
    every = config.tracking.task_norms_every
    if not every:
        return None
    return TaskNorms(
        state.model.parameters(),
        every=every,
        accumulation=config.parallel.accumulation,
        group=group,
    )


def _watch_rank(
    config: RunConfig, state: TrainState, group: Group, restart: int, events: EventLog | None
) -> Watchdog:
    return Watchdog(
        config.run_folder,
        config.watch,
        rank=group.place.rank,
        restart=restart,
        step=state.step,
        loader_state=lambda: state.data,
        tell=events.write if events else None,
        hint=stall_hint(config.parallel, num_ranks=group.place.world_size),
    )


def _build_state(
    config: RunConfig, request: Request, *, group: Group, device: torch.device
) -> tuple[TrainState, MultiTask]:
    """A state at step 0: the same weights on every rank, random numbers of its own on each."""
    seed_generators(config.seed, rank=0)
    losses = request.make_losses(config, device)
    if config.parallel.checkpoint_activations:
        checkpoint_activations(losses.model)
    seed_generators(config.seed, rank=group.place.rank)
    groups = parameter_groups(losses.model, config.optimizer)
    if group.place.is_main:
        Console().print(group_table(groups, losses.model))
    backend = build_backend(losses, groups, config, group=group, device=device)
    decay = config.optimizer.ema_decay
    ema = Ema(backend.pieces(), decay=decay) if decay else None
    is_sharded = config.parallel.backend == "deepspeed" and config.parallel.zero_stage == 3

    def build_model() -> nn.Module:
        return request.make_losses(config, device).model

    state = TrainState(
        model=losses.model,
        backend=backend,
        ema=ema,
        build_model=build_model if is_sharded else None,
    )
    return state, losses


def _train_and_tell(
    state: TrainState, losses: MultiTask, stream: Stream, config: RunConfig, around: Surroundings
) -> ExitCode:
    try:
        with around.watchdog or nullcontext():
            code = train(state, losses, stream, config, around)
    except PipelineError as error:
        _tell(around.events, "failed", {"step": state.step, "error": str(error)})
        raise
    finally:
        around.checkpointer.settle()
        for tracker in around.trackers:
            tracker.finish()
    if code == ExitCode.FINISHED:
        _tell(around.events, "finished", {"step": state.step})
    return code


def build_backend(
    losses: MultiTask,
    groups: tuple[ParameterGroup, ...],
    config: RunConfig,
    *,
    group: Group,
    device: torch.device,
) -> Backend:
    """What runs the steps, as `parallel` says."""
    parallel = config.parallel
    module = TrainedModule(losses, precision=parallel.precision)
    loss_scale = build_loss_scale(parallel)
    if parallel.backend == "deepspeed":
        # the import takes seconds, which only this choice pays
        from pipelines.engine.deepspeed_backend import DeepSpeedBackend
        from pipelines.engine.self_check import check_deepspeed

        if parallel.self_check:
            check_deepspeed(config, group=group, device=device)
        return DeepSpeedBackend(
            module,
            groups,
            config.optimizer,
            parallel=parallel,
            is_cuda=device.type == "cuda",
            loss_scale=loss_scale,
        )
    return TorchBackend(
        module,
        groups,
        config.optimizer,
        place=group.place,
        accumulation=parallel.accumulation,
        loss_scale=loss_scale,
    )


def _open_folder(config: RunConfig, request: Request, group: Group) -> tuple[str, int]:
    """Run id and restart count, the same on every rank."""

    def prepare() -> tuple[str, int]:
        is_forced = request.resume not in ("auto", "never")
        run_id = prepare_folder(config, request.asked, is_forced=is_forced)
        return run_id, count_starts(config.run_folder)

    return group.main_does(prepare)


@contextmanager
def _log_file(folder: Path, *, restart: int, rank: int) -> Iterator[None]:
    """A copy of everything that is logged, one file per start and rank."""
    handler = logging.FileHandler(folder / "logs" / f"start{restart:03d}.rank{rank:05d}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception:
        # the terminal may be gone by the time that somebody asks
        with Path(handler.baseFilename).open("a") as file:
            file.write(traceback.format_exc())
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _choose_source(
    request: Request, checkpointer: Checkpointer
) -> tuple[Path | None, tuple[str, ...]]:
    if request.resume not in ("auto", "never"):
        return find_checkpoint(Path(request.resume)), ()
    newest, complaints = checkpointer.newest()
    if request.resume == "never" and newest is not None:
        raise CheckpointError(
            f"--resume never: the run folder must have no checkpoint; {newest} is there. "
            "Choose another --output-dir, or remove the old run."
        )
    return newest, complaints


def _open_trackers(
    config: RunConfig, run_id: str, restart: int, resumed_at_step: int
) -> tuple[Tracker, ...]:
    folder = config.run_folder
    jsonl = JsonlTracker(folder, restart=restart, resumed_at_step=resumed_at_step)
    if config.tracking.wandb == "off":
        return (jsonl,)
    from pipelines.tracking.wandb_tracker import WandbTracker

    wandb = WandbTracker(
        folder,
        mode=config.tracking.wandb,
        project=config.tracking.wandb_project,
        name=config.name,
        run_id=run_id,
        config=to_json(config),
    )
    return (jsonl, wandb)


def _tell(events: EventLog | None, kind: str, facts: Mapping[str, Any]) -> None:
    if events is not None:
        events.write(kind, facts)


def _tell_start(
    events: EventLog | None,
    state: TrainState,
    source: Path | None,
    complaints: tuple[str, ...],
    environment: Mapping[str, Any],
) -> None:
    if events is None:
        return
    events.write("start", {"step": state.step, **environment})
    for complaint in complaints:
        events.write("damaged_checkpoint", {"message": complaint})
    if source is not None:
        _log.info("resumed from %s, step %d", source, state.step)
        events.write("resume", {"step": state.step, "folder": str(source)})
    path = events.folder / "environment.json"
    write_text_atomically(path, json.dumps(environment, indent=1))
