import pytest
import torch
from torch import nn

from pipelines.engine.ema import Ema


def test_average_follows_the_weights_with_a_growing_decay() -> None:
    model = nn.Linear(2, 3, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(dict(model.named_parameters()), decay=0.5)
    nn.init.ones_(model.weight)
    ema.update(dict(model.named_parameters()), 1)
    # (1 + 1) / (10 + 1) of the old value, which is 0
    assert ema.weights["weight"].flatten().tolist() == pytest.approx([1 - 2 / 11] * 6)
    ema.update(dict(model.named_parameters()), 1000)
    assert ema.weights["weight"].flatten().tolist() == pytest.approx([1 - 1 / 11] * 6)


def test_average_does_not_share_memory_with_the_model() -> None:
    model = nn.Linear(2, 3)
    ema = Ema(dict(model.named_parameters()), decay=0.9)
    before = ema.weights["weight"].clone()
    nn.init.ones_(model.weight)
    assert torch.equal(ema.weights["weight"], before)


def test_loading_takes_over_values_and_keeps_the_buffers() -> None:
    model = nn.Linear(2, 3)
    ema = Ema(dict(model.named_parameters()), decay=0.9)
    buffer = ema.weights["bias"]
    ema.load({"weight": torch.ones(3, 2), "bias": torch.ones(3)})
    assert ema.weights["bias"] is buffer
    assert buffer.tolist() == [1.0] * 3
