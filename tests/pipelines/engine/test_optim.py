from dataclasses import replace
from io import StringIO
from types import ModuleType

import pytest
import torch
from rich.console import Console
from torch import nn

from pipelines.config import OptimizerConfig
from pipelines.engine.optim import (
    FlatGradients,
    build_optimizer,
    freeze,
    group_table,
    named_parameters,
    parameter_groups,
    read_moments,
    set_learning_rates,
    write_moments,
)
from pipelines.errors import ConfigError

CONFIG = OptimizerConfig(
    learning_rate=1.0, backbone_multiplier=0.5, text_multiplier=0.25, weight_decay=0.1
)


def test_parts_have_their_rates_and_only_matrices_decay(tiny: ModuleType) -> None:
    groups = parameter_groups(tiny.TinyModel(), CONFIG)
    found = {name: (g.learning_rate, g.weight_decay) for g in groups for name in g.names}
    assert found == {
        "backbone.0.weight": (0.5, 0.1),
        "backbone.0.bias": (0.5, 0.0),
        "text_encoder.weight": (0.25, 0.0),
        "head.weight": (1.0, 0.1),
        "head.bias": (1.0, 0.0),
        "norm.weight": (1.0, 0.0),
        "norm.bias": (1.0, 0.0),
        "rare.weight": (1.0, 0.1),
        "rare.bias": (1.0, 0.0),
    }


def test_free_parameters_of_the_model_do_not_decay() -> None:
    model = nn.Module()
    model.queries = nn.Parameter(torch.zeros(7, 3))
    model.attention = nn.MultiheadAttention(4, 2)
    groups = parameter_groups(model, CONFIG)
    decayed = {name for group in groups if group.weight_decay for name in group.names}
    assert decayed == {"attention.in_proj_weight", "attention.out_proj.weight"}


def test_frozen_parameters_are_in_no_group(tiny: ModuleType) -> None:
    model = tiny.TinyModel()
    model.backbone.requires_grad_(False)
    names = {name for group in parameter_groups(model, CONFIG) for name in group.names}
    assert not any(name.startswith("backbone") for name in names)


def test_earlier_stages_of_the_trunk_learn_more_slowly() -> None:
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.stem = nn.Linear(2, 3)
    model.backbone.stages = nn.ModuleList(nn.Linear(2, 3) for _ in range(3))
    model.head = nn.Linear(3, 4)
    config = replace(CONFIG, layer_decay=0.5)
    groups = parameter_groups(model, config)
    rates = {name: g.learning_rate for g in groups for name in g.names}
    assert rates["backbone.stages.2.weight"] == 0.5
    assert rates["backbone.stages.1.weight"] == 0.25
    assert rates["backbone.stages.0.weight"] == rates["backbone.stem.weight"] == 0.125
    assert rates["head.weight"] == 1.0
    whole = parameter_groups(model, CONFIG)
    assert {g.learning_rate for g in whole} == {0.5, 1.0}


def test_frozen_parts_are_named_and_must_exist(tiny: ModuleType) -> None:
    model = tiny.TinyModel()
    freeze(model, ("text",))
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    assert frozen == {"text_encoder.weight"}
    with pytest.raises(ConfigError, match=r"'decoder' must be a part of the model; it has back"):
        freeze(model, ("decoder",))


def test_a_layer_decay_above_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer_decay must be in \(0, 1\]; got 1.5"):
        OptimizerConfig(layer_decay=1.5)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"all of them are frozen\. Unfreeze a part"):
        parameter_groups(nn.Linear(2, 3).requires_grad_(False), CONFIG)


def test_table_counts_every_value(tiny: ModuleType) -> None:
    model = tiny.TinyModel()
    model.rare.requires_grad_(False)
    groups = parameter_groups(model, CONFIG)
    out = StringIO()
    Console(file=out, width=120).print(group_table(groups, model))
    num_frozen = sum(value.numel() for value in model.rare.parameters())
    num_all = sum(value.numel() for value in model.parameters())
    assert sum(group.num_values for group in groups) + num_frozen == num_all
    for word in ("backbone, decayed", "text, not decayed", "frozen"):
        assert word in out.getvalue()


def test_factor_scales_the_base_rate_of_every_group(tiny: ModuleType) -> None:
    optimizer = build_optimizer(parameter_groups(tiny.TinyModel(), CONFIG), CONFIG)
    set_learning_rates(optimizer, 0.1)
    set_learning_rates(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 0.25, 0.125}


def test_gradients_accumulate_in_one_buffer() -> None:
    layer = nn.Linear(2, 3)
    gradients = FlatGradients([layer.weight, layer.bias])
    layer(torch.ones(5, 2)).sum().backward()
    layer(torch.ones(5, 2)).sum().backward()
    assert gradients.buffer.tolist() == [10.0] * 9


def test_clipping_returns_the_norm_before_it() -> None:
    layer = nn.Linear(2, 3)
    gradients = FlatGradients([layer.weight, layer.bias])
    gradients.buffer.fill_(2.0)
    assert gradients.clip(3.0).item() == pytest.approx(6.0)
    assert layer.weight.grad is not None
    # the 1e-6 in the divisor of torch's own clipping
    assert gradients.buffer.norm().item() == pytest.approx(3.0, rel=1e-6)
    assert layer.weight.grad.flatten().tolist() == pytest.approx([1.0] * 6, rel=1e-6)


def test_small_gradients_are_not_enlarged() -> None:
    layer = nn.Linear(2, 3)
    gradients = FlatGradients([layer.weight, layer.bias])
    gradients.buffer.fill_(0.5)
    gradients.clip(3.0)
    assert gradients.buffer.tolist() == [0.5] * 9


def test_norm_of_millions_of_values_is_exact_to_rounding() -> None:
    layer = nn.Linear(2000, 2000)
    gradients = FlatGradients([layer.weight, layer.bias])
    gradients.buffer.uniform_(-1, 1)
    exact = gradients.buffer.double().norm().item()
    # float32 keeps 24 bits; a single running sum would keep about 12
    assert gradients.clip(1e9).item() == pytest.approx(exact, rel=2**-20)


def test_a_state_without_moments_leaves_none_behind() -> None:
    model = nn.Linear(3, 2)
    groups = parameter_groups(model, CONFIG)
    optimizer, named = build_optimizer(groups, CONFIG), named_parameters(groups)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = read_moments(optimizer, named)
    assert before["step"].item() == 1
    write_moments(optimizer, named, {}, 0)
    assert read_moments(optimizer, named) == {}
