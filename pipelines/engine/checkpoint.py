"""What is in a checkpoint, how a run goes on from it, and how a model is loaded from it.

Tensors are safetensors files and everything else is JSON: reading a checkpoint runs no code.

    model.safetensors      the weights             optimizer.safetensors  moment/parameter name
    ema.safetensors        their average           state.json             step, data state, world
    generators_*.{safetensors,json}  per rank      config.resolved.json   the whole configuration
    config.json            the model's settings, and how to ask it (xdecoder/pretrained.py)
"""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.config import RunConfig
from pipelines.engine.checkpoint_files import (
    CheckpointFolders,
    read_tensors,
    verify,
)
from pipelines.engine.checkpoint_writer import Saved, Snapshot, Writer
from pipelines.engine.distributed import Group
from pipelines.engine.fence import Fence
from pipelines.engine.generators import read_generators, write_generators
from pipelines.engine.state import TrainState
from pipelines.errors import CheckpointError, PipelineError
from pipelines.families import TrainedModel, build_model_of
from pipelines.overrides import from_json, to_json
from pipelines.prediction import prediction_of_run
from xdecoder.lora import merged
from xdecoder.pretrained import SETTINGS, settings_document

_log = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores the state of one run; every method is called by all ranks together.

    Rank 0 writes, from a copy in its host's memory, while training goes on:

        save ---- copy ----> return            save ---- finish, copy ----> return
                    `--> write, hash, sync, rename --'
    """

    def __init__(
        self, root: Path, *, config: RunConfig, group: Group, fence: Fence | None = None
    ) -> None:
        if group.place.is_main:
            root.mkdir(parents=True, exist_ok=True)
        check = None if fence is None else fence.check
        self._folders = CheckpointFolders(root, config.checkpoint, check=check)
        self._config = config
        self._settings = settings_document(config.model, prediction_of_run(config))
        self._group = group
        self._writer: Writer | None = None
        self._completed: list[Saved] = []

    def save(self, state: TrainState, *, metrics: Mapping[str, float] | None = None) -> None:
        """Start a checkpoint; without `checkpoint.asynchronous`, it is complete on return.

        metrics: of the step that was taken last, for `checkpoint.keep_best`.

        Raises:
            CheckpointError: this or the checkpoint before it could not be written.
        """
        began = time.perf_counter()
        self.finish()
        snapshot = self._snapshot(state, metrics or {})
        if self._group.place.is_main:
            self._writer = Writer(self._folders, state.step, snapshot, began=began)
        if not self._config.checkpoint.asynchronous:
            self.finish()

    def finish(self) -> None:
        """Return once everything that `save` started is complete.

        Raises:
            CheckpointError: it could not be written; on every rank.
        """
        self._group.main_does(self._join)

    def settle(self) -> None:
        """Return once nothing is being written, whether it succeeded or not; asks no other rank."""
        try:
            self._join()
        except PipelineError:
            # the writer has logged it, and the run is ending of something else
            self._writer = None

    def completed(self) -> list[Saved]:
        """What became complete since the last call, on rank 0; it asks no other rank."""
        if self._writer is not None and self._writer.is_complete:
            self._join()
        completed, self._completed = self._completed, []
        return completed

    def newest(self) -> tuple[Path | None, tuple[str, ...]]:
        """The newest undamaged checkpoint as rank 0 sees it, and complaints about newer ones."""
        return self._group.main_does(self._folders.newest_complete)

    def restore(self, state: TrainState, folder: Path) -> None:
        """Put `state` and this rank's generators where they were when `folder` was written."""
        facts = json.loads((folder / "state.json").read_text())
        weights = read_tensors(folder / "model.safetensors")
        check_fits(state.model, weights, where=folder)
        moments = read_tensors(folder / "optimizer.safetensors")
        if state.backend.loss_scale is not None and facts.get("loss_scale"):
            state.backend.loss_scale.load(facts["loss_scale"])
        state.backend.load_state(weights, moments, facts["step"])
        if state.ema is not None:
            average = _ema_or_weights(folder, weights)
            named = {name: average[name] for name in state.ema.weights}
            state.ema.load(state.backend.split(named))
        state.step, state.data = facts["step"], facts["data"]
        self._restore_generators(folder, facts)
        self._group.barrier()
        if self._group.place.is_main:
            self._folders.set_aside_after(state.step)

    def _join(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._completed.append(writer.result())

    def _snapshot(self, state: TrainState, metrics: Mapping[str, float]) -> Snapshot:
        """Copies of everything, on rank 0; the other ranks hand over their parts."""
        backend = state.backend
        tensors = {
            "model.safetensors": backend.model_state(),
            "optimizer.safetensors": backend.optimizer_state(),
        }
        if state.ema is not None:
            tensors["ema.safetensors"] = backend.whole(state.ema.weights)
        texts: dict[str, object] = {
            "state.json": self._facts(state) | {"metrics": dict(metrics)},
            "config.resolved.json": to_json(self._config),
            SETTINGS: self._settings,
        }
        generators = self._group.gather(read_generators(is_cuda=torch.cuda.is_available()))
        for rank, (states, values) in enumerate(generators):
            tensors[f"{_generators_name(rank)}.safetensors"] = states
            texts[f"{_generators_name(rank)}.json"] = values
        return Snapshot(
            tensors=tensors,
            texts={name: json.dumps(value, indent=1) for name, value in texts.items()},
        )

    def _facts(self, state: TrainState) -> dict[str, Any]:
        scale = state.backend.loss_scale
        return {
            "step": state.step,
            "data": state.data,
            "loss_scale": None if scale is None else scale.state(),
            "world_size": self._group.place.world_size,
            "num_threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def _restore_generators(self, folder: Path, facts: Mapping[str, Any]) -> None:
        world_size, num_threads = self._group.place.world_size, torch.get_num_threads()
        if facts["world_size"] != world_size:
            _log.warning(
                "checkpoint: written by %d ranks, read by %d: sums run in another order, so "
                "losses agree only to rounding.",
                facts["world_size"],
                world_size,
            )
            return
        if facts["num_threads"] != num_threads:
            _log.warning(
                "checkpoint: written with %d threads, read with %d: losses agree only to "
                "rounding. Set parallel.num_threads=%d to continue bit for bit.",
                facts["num_threads"],
                num_threads,
                facts["num_threads"],
            )
        name = _generators_name(self._group.place.rank)
        write_generators(
            read_tensors(folder / f"{name}.safetensors"),
            json.loads((folder / f"{name}.json").read_text()),
        )


def load_model(path: str | Path, *, ema: bool = True) -> tuple[TrainedModel, RunConfig]:
    """The model of a run in evaluation mode on the CPU, and the configuration of that run.

    path: a run folder (its newest undamaged checkpoint is read) or one checkpoint folder.
    ema: the averaged weights, where the run kept an average.

    Raises:
        CheckpointError: there is no complete checkpoint, or it does not fit its own model.
    """
    folder = find_checkpoint(Path(path))
    config = read_config(folder / "config.resolved.json")
    model = build_model_of(config.model, has_initial_weights=False)
    load_weights(model, folder, ema=ema)
    return model.eval(), config


def load_weights(
    model: nn.Module, folder: Path, *, ema: bool = True, new_parts: tuple[str, ...] = ()
) -> None:
    """Copy the weights of a checkpoint folder, additions merged, into a model of the same shape.

    new_parts: beginnings of names that stay as they are where the folder has none of them.
    """
    weights = read_tensors(folder / "model.safetensors")
    if ema:
        weights |= _ema_or_weights(folder, weights)
    weights = merged(weights)
    for part in new_parts:
        if not any(name.startswith(part) for name in weights):
            own = model.state_dict()
            weights |= {name: own[name] for name in own if name.startswith(part)}
    check_fits(model, weights, where=folder)
    model.load_state_dict(weights)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a path means: itself, or the newest complete one of a run.

    Raises:
        CheckpointError: nothing complete is there.
    """
    if path.name.startswith("step_") or (path / "state.json").is_file():
        verify(path)
        return path.resolve()
    for root in (path / "checkpoints", path):
        newest, _ = CheckpointFolders(root).newest_complete()
        if newest is not None:
            return newest
    raise CheckpointError(
        f"checkpoint: {path} must be a run folder or a checkpoint folder; no complete "
        "checkpoint is there. Train first, or name the folder that has checkpoints/."
    )


def read_config(path: Path) -> RunConfig:
    """The configuration that a run saved."""
    return from_json(RunConfig, json.loads(path.read_text()))


def check_fits(model: nn.Module, weights: Mapping[str, Tensor], *, where: Path) -> None:
    """Return if the weights are those of the model, name by name and shape by shape.

    Raises:
        CheckpointError: listing what is missing, unexpected and of the wrong shape apart.
    """
    wanted = {name: _shape(value) for name, value in model.state_dict(keep_vars=True).items()}
    missing = sorted(wanted.keys() - weights.keys())
    unexpected = sorted(weights.keys() - wanted.keys())
    misshapen = [
        f"{name} {list(weights[name].shape)} for {list(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"checkpoint: {where} must hold the weights of this model; missing: "
            f"{_few(missing)}; unexpected: {_few(unexpected)}; wrong shape: {_few(misshapen)}. "
            "Use the model settings that it was trained with (config.resolved.json beside it)."
        )


def _shape(value: Tensor) -> torch.Size:
    # a parameter that ZeRO-3 shards is empty, and knows the shape it has when whole
    return getattr(value, "ds_shape", value.shape)


def _few(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more


def _ema_or_weights(folder: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    path = folder / "ema.safetensors"
    return read_tensors(path) if path.is_file() else weights


def _generators_name(rank: int) -> str:
    return f"generators_{rank:05d}"
