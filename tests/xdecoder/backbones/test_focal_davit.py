"""FocalNet and DaViT: published sizes, checkpointing and stochastic depth."""

import pytest
import torch
from torch.nn import functional as F

from xdecoder.backbones.davit import DaVit, davit_d3, davit_d5
from xdecoder.backbones.focal import FocalNet, focal_l, focal_t


def _focal(block, **changed):
    return FocalNet(4, depths=(1, 2, 1, 1), num_levels=2, block=block, **changed)


def _davit(**changed):
    settings = {"patch_sizes": (7, 3, 3, 3), "patch_paddings": (3, 1, 1, 1)}
    settings |= {"depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 3)}
    return DaVit((4, 8, 12, 18), **(settings | changed))


_SMALL = {
    "conv": lambda **changed: _focal("conv", **changed),
    "plain": lambda **changed: _focal("plain", **changed),
    "davit": _davit,
}


# Source: parameter counts of the official code, in millions
@pytest.mark.parametrize(
    ("build", "millions"),
    [(focal_t, 29.9), (focal_l, 205.7), (davit_d3, 86.9), (davit_d5, 360.6)],
)
def test_builders_have_the_published_sizes(build, millions):
    with torch.device("meta"):
        trunk = build()
    assert sum(p.numel() for p in trunk.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("name", _SMALL)
def test_checkpointing_runs_blocks_again_and_changes_no_gradient(assert_recomputes, name):
    trunk = _SMALL[name](drop_path=0.4)
    twin = _SMALL[name](drop_path=0.4, has_checkpointing=True)
    assert_recomputes(trunk, twin, twin.stages[2][0], torch.randn(2, 3, 64, 96))


@pytest.mark.parametrize(("name", "num_blocks"), [("conv", 5), ("plain", 5), ("davit", 10)])
def test_drop_path_grows_from_zero_to_its_value_over_the_blocks(name, num_blocks):
    stages = _SMALL[name](drop_path=0.36).stages
    rates = [block.drop_path.drop_prob for stage in stages for block in stage]
    assert rates == pytest.approx([0.36 * i / (num_blocks - 1) for i in range(num_blocks)])


@pytest.mark.parametrize("block", ["conv", "plain"])
def test_rows_of_zeros_below_an_image_of_odd_size_change_nothing(randomised, block):
    trunk = randomised(_focal(block)).eval()
    image = torch.randn(1, 3, 61, 90)
    for map_, padded in zip(trunk(image), trunk(F.pad(image, (0, 2, 0, 3))), strict=True):
        torch.testing.assert_close(map_, padded)


def test_channel_attention_has_its_own_number_of_groups(randomised):
    trunk = randomised(_davit(num_groups=(2, 4, 3, 9)))
    with_heads = _davit()
    with_heads.load_state_dict(trunk.state_dict())
    images = torch.randn(1, 3, 64, 96)
    assert not torch.equal(trunk(images)[0], with_heads(images)[0])
    with_groups = _davit(num_heads=(1, 2, 2, 3), num_groups=(2, 4, 3, 9))
    with_groups.load_state_dict(trunk.state_dict())
    assert torch.equal(trunk(images)[0], with_groups(images)[0])
