"""What is in a checkpoint, how a run goes on from it, and how a model is loaded from it.

Tensors are safetensors files and everything else is JSON: reading a checkpoint runs no code.

    model.safetensors      the weights             optimizer.safetensors  moment/parameter name
    ema.safetensors        their average           state.json             step, data state, world
    generators_*.{safetensors,json}  per rank      config.resolved.json   the whole configuration
"""

import json
import logging
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
    write_tensors,
)
from pipelines.engine.distributed import Group
from pipelines.engine.generators import read_generators, write_generators
from pipelines.engine.state import TrainState
from pipelines.errors import CheckpointError
from pipelines.families import TrainedModel, build_model_of
from pipelines.overrides import from_json, to_json

_log = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores the state of one run; every method is called by all ranks together."""

    def __init__(self, root: Path, *, config: RunConfig, group: Group) -> None:
        self._folders = CheckpointFolders(root, keep_last=config.checkpoint.keep_last)
        self._config = config
        self._group = group

    def save(self, state: TrainState) -> Path:
        """The folder of the new checkpoint, which is complete on return."""
        group, folder = self._group, self._folders.writing(state.step)
        if group.place.is_main:
            self._folders.begin(state.step)
        group.barrier()
        optimizer = state.backend.optimizer_state()
        _write_generators(folder, group.place.rank)
        if group.place.is_main:
            write_tensors(folder / "model.safetensors", state.model.state_dict())
            write_tensors(folder / "optimizer.safetensors", optimizer)
            if state.ema is not None:
                write_tensors(folder / "ema.safetensors", state.ema.weights)
            _write_json(folder / "state.json", self._facts(state))
            _write_json(folder / "config.resolved.json", to_json(self._config))
        group.barrier()
        if group.place.is_main:
            self._folders.commit(state.step)
        group.barrier()
        return self._folders.root / f"step_{state.step:08d}"

    def newest(self) -> tuple[Path | None, tuple[str, ...]]:
        """The newest undamaged checkpoint as rank 0 sees it, and complaints about newer ones."""
        return self._group.main_does(self._folders.newest_complete)

    def restore(self, state: TrainState, folder: Path) -> None:
        """Put `state` and this rank's generators where they were when `folder` was written."""
        facts = json.loads((folder / "state.json").read_text())
        weights = read_tensors(folder / "model.safetensors")
        check_fits(state.model, weights, where=folder)
        moments = read_tensors(folder / "optimizer.safetensors")
        state.backend.load_state(weights, moments, facts["step"])
        if state.ema is not None:
            state.ema.load(_ema_or_weights(folder, weights))
        state.step, state.data = facts["step"], facts["data"]
        self._restore_generators(folder, facts)
        self._group.barrier()
        if self._group.place.is_main:
            self._folders.set_aside_after(state.step)

    def _facts(self, state: TrainState) -> dict[str, Any]:
        return {
            "step": state.step,
            "data": state.data,
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


def load_weights(model: nn.Module, folder: Path, *, ema: bool = True) -> None:
    """Copy the weights of a checkpoint folder into a model of the same shape."""
    weights = read_tensors(folder / "model.safetensors")
    if ema:
        weights |= _ema_or_weights(folder, weights)
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
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - weights.keys())
    unexpected = sorted(weights.keys() - wanted.keys())
    misshapen = [
        f"{name} {list(weights[name].shape)} for {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"checkpoint: {where} must hold the weights of this model; missing: "
            f"{_few(missing)}; unexpected: {_few(unexpected)}; wrong shape: {_few(misshapen)}. "
            "Use the model settings that it was trained with (config.resolved.json beside it)."
        )


def _few(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more


def _ema_or_weights(folder: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    path = folder / "ema.safetensors"
    return read_tensors(path) if path.is_file() else weights


def _generators_name(rank: int) -> str:
    return f"generators_{rank:05d}"


def _write_generators(folder: Path, rank: int) -> None:
    tensors, values = read_generators(is_cuda=torch.cuda.is_available())
    write_tensors(folder / f"{_generators_name(rank)}.safetensors", tensors)
    _write_json(folder / f"{_generators_name(rank)}.json", values)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1))
