"""Image trunks against recordings of the official code; tolerance as for the other parts."""

import json

import pytest

from xdecoder.backbones.davit import DaVit
from xdecoder.backbones.focal import FocalNet
from xdecoder.convert.rules import convert
from xdecoder.convert.xdecoder import FOCAL, davit

TOLERANCE = 1e-4


@pytest.mark.parametrize(("name", "block"), [("focal_dw", "conv"), ("focal", "plain")])
def test_focal_nets_are_the_official_ones(golden, deviation, name, block):
    recorded = golden(f"sub_backbone_{name}")
    settings = json.loads(recorded.facts["config"])
    trunk = FocalNet(
        settings["EMBED_DIM"],
        depths=settings["DEPTHS"],
        num_levels=settings["FOCAL_LEVELS"][0],
        window=settings["FOCAL_WINDOWS"][0],
        block=block,
    )
    trunk.load_state_dict(convert(recorded.part("weight."), FOCAL).state)
    # the sides of the second image are not multiples of the strides
    for i in range(2):
        maps = trunk(recorded.tensors[f"in.x_{i}"])
        for stride, map_ in zip((2, 3, 4, 5), maps, strict=True):
            assert deviation(map_, recorded.tensors[f"out.res{stride}_{i}"]) < TOLERANCE


def test_davit_is_the_official_one(golden, deviation):
    recorded = golden("sub_backbone_davit")
    settings = json.loads(recorded.facts["config"])
    trunk = DaVit(
        settings["DIM_EMBED"],
        depths=settings["DEPTHS"],
        num_heads=settings["NUM_HEADS"],
        patch_sizes=settings["PATCH_SIZE"],
        patch_paddings=settings["PATCH_PADDING"],
    )
    rules = davit(tuple(settings["DEPTHS"]))
    trunk.load_state_dict(convert(recorded.part("weight."), rules).state)
    maps = trunk(recorded.tensors["in.x"])
    for stride, map_ in zip((2, 3, 4, 5), maps, strict=True):
        assert deviation(map_, recorded.tensors[f"out.res{stride}"]) < TOLERANCE
