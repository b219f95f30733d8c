"""What every published backbone is tested with."""

import json

import pytest
import torch
from torch import nn


@pytest.fixture
def randomised():
    """Every tensor of a module drawn anew, so that nothing is zero, one or equal."""

    def draw(module: nn.Module) -> nn.Module:
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.5 if tensor.dim() == 1 else tensor[0].numel() ** -0.5)
        return module

    return draw


@pytest.fixture
def gradients_of():
    """All gradients of a scalar of the maps, in training mode, from one random state."""

    def measure(module: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        sum(map_.square().mean() for map_ in module.train()(images)).backward()
        return {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}

    return measure


@pytest.fixture
def assert_recomputes(gradients_of, randomised):
    """Assert that a module's twin runs its blocks twice in training and learns the same."""

    def check(module: nn.Module, twin: nn.Module, block: nn.Module, images: torch.Tensor) -> None:
        twin.load_state_dict(randomised(module).state_dict())
        runs = []
        block.register_forward_pre_hook(lambda *_: runs.append(1))
        expected, actual = gradients_of(module, images), gradients_of(twin, images)
        assert len(runs) == 2
        assert set(actual) == {name for name, p in module.named_parameters() if p.requires_grad}
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient)

    return check


@pytest.fixture
def official_backbone_shapes(shared_dir):
    """Empty tensors under the official names of one model's backbone."""

    def read(file: str, model: str) -> dict[str, torch.Tensor]:
        path = shared_dir / "specs" / "statedicts" / f"{file}_statedict.json"
        shapes = json.loads(path.read_text())["models"][model]["shapes"]
        return {
            name.removeprefix("backbone."): torch.empty(shape, device="meta")
            for name, shape in shapes.items()
            if name.startswith("backbone.")
        }

    return read
