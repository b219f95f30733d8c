"""Checkpoints of the real model: loading it for evaluation, and starting from its weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from pipelines.config import RunConfig
from pipelines.engine.checkpoint import Checkpointer, check_fits, find_checkpoint, load_model
from pipelines.engine.distributed import Group, ProcessPlace
from pipelines.engine.ema import Ema
from pipelines.engine.optim import parameter_groups
from pipelines.engine.session import build_backend, build_losses
from pipelines.engine.state import TrainState
from pipelines.errors import CheckpointError
from pipelines.overrides import override
from pipelines.recipes import RECIPES

SMALL = (
    "model.backbone.weights=random",
    "model.dim=32",
    "model.decoder.num_layers=1",
    "model.pixel_decoder.num_layers=1",
    "model.text.num_layers=1",
    "model.text.num_merges=100",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig, TrainState]:
    """A run folder with one checkpoint of an untrained model whose average is all 0.25."""
    folder = tmp_path_factory.mktemp("run")
    config = override(RECIPES["scenes"](), [f"output_dir={folder}", *SMALL])
    group = Group(ProcessPlace(), is_cuda=False)
    losses = build_losses(config, torch.device("cpu"))
    groups = parameter_groups(losses.model, config.optimizer)
    backend = build_backend(losses, groups, config, group=group, device=torch.device("cpu"))
    backend.step(1.0)
    state = TrainState(model=losses.model, backend=backend, ema=Ema(backend.pieces(), decay=0.9))
    assert state.ema is not None
    for average in state.ema.weights.values():
        average.fill_(0.25)
    state.step = 7
    checkpointer = Checkpointer(folder / "checkpoints", config=config, group=group)
    checkpointer.save(state)
    checkpointer.finish()
    return folder, config, state


def test_model_loads_from_run_folder_checkpoint_folder_and_link(
    saved: tuple[Path, RunConfig, TrainState],
) -> None:
    folder, config, state = saved
    for path in (folder, folder / "checkpoints" / "step_00000007", folder / "checkpoints/latest"):
        model, read = load_model(path, ema=False)
        assert read == config
        assert not model.training
        wanted = state.model.state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_averaged_weights_are_the_default(saved: tuple[Path, RunConfig, TrainState]) -> None:
    model, _ = load_model(saved[0])
    assert all((value == 0.25).all() for value in model.parameters())


def test_folder_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no complete checkpoint is there\. Train"):
        find_checkpoint(tmp_path)


def test_weights_of_another_model_are_listed_apart() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    weights = {"0.weight": torch.ones(3, 5), "0.bias": torch.ones(3), "extra": torch.ones(1)}
    with pytest.raises(CheckpointError) as caught:
        check_fits(model, weights, where=Path("there"))
    message = str(caught.value)
    assert "missing: 1.bias, 1.weight;" in message
    assert "unexpected: extra;" in message
    assert "wrong shape: 0.weight [3, 5] for [3, 2]." in message


def test_new_run_starts_from_the_weights_of_another(
    saved: tuple[Path, RunConfig, TrainState],
) -> None:
    folder, config, _ = saved
    fresh = replace(config, init_from=str(folder))
    losses = build_losses(fresh, torch.device("cpu"))
    assert all((value == 0.25).all() for value in losses.model.parameters())
    assert losses.training


def test_checkpoint_holds_no_pickle(
    tmp_path: Path, train_tiny: Callable[..., int], tiny: ModuleType
) -> None:
    train_tiny(tmp_path, "steps=4")
    latest = tmp_path / "checkpoints" / "latest"
    kinds = {path.suffix for path in latest.iterdir()}
    assert kinds == {".safetensors", ".json", ""}
