import pytest
import torch
from torch import nn

from xdecoder.config import ConfigError
from xdecoder.layers import FeedForward, SelfAttention
from xdecoder.lora import add_lora, merged


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = SelfAttention(8, num_heads=2)
        self.ffn = FeedForward(8, hidden_dim=12)

    def forward(self, x):
        return self.ffn(self.attention(x, torch.zeros_like(x)))


@pytest.fixture
def block():
    pytest.importorskip("peft")
    torch.manual_seed(0)
    return _Block()


def test_additions_start_at_zero_and_are_all_that_learns(block):
    x = torch.randn(2, 5, 8)
    before = block(x)
    add_lora(block, rank=3, alpha=6, targets=("out_proj", "linear1", "linear2"))
    assert block(x).equal(before)
    trained = {name for name, each in block.named_parameters() if each.requires_grad}
    assert len(trained) == 6
    assert all(".lora_" in name for name in trained)
    block(x).sum().backward()
    # the second factor is zero, so only it has a gradient at first; the sum over outputs is not
    # flat in any of the three layers
    reached = {n for n, each in block.named_parameters() if each.grad is not None}
    assert trained == reached


def test_merged_weights_compute_the_same_in_a_plain_model(block):
    add_lora(block, rank=3, alpha=6, targets=("out_proj", "linear1"))
    with torch.no_grad():
        for name, each in block.named_parameters():
            if ".lora_" in name:
                each.copy_(torch.randn_like(each))
    plain = _Block()
    plain.load_state_dict(merged(block.state_dict()))
    x = torch.randn(2, 5, 8)
    assert torch.allclose(plain(x), block(x), atol=1e-5)
    unscaled = _Block()
    unscaled.load_state_dict(merged({**block.state_dict(), "lora_scale": torch.ones(1)}))
    assert not torch.allclose(unscaled(x), block(x), atol=1e-2)


def test_weights_without_additions_stay_as_they_are():
    weights = _Block().state_dict()
    assert merged(weights).keys() == weights.keys()


@pytest.mark.parametrize("targets", [("nothing",), ("in_proj",), ("out_proj", "in_proj")])
def test_layers_that_cannot_take_additions_are_refused(block, targets):
    with pytest.raises(ConfigError, match=r"lora.targets must be among linear1, linear2, out_proj"):
        add_lora(block, rank=2, alpha=2, targets=targets)
