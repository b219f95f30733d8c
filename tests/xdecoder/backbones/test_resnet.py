"""ResNet: detectron2's names and freezing, torchvision's numbers."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from xdecoder.backbones.resnet import ResNetBackbone, resnet50, resnet101
from xdecoder.convert.backbones import RESNET, TORCHVISION_RESNET
from xdecoder.convert.rules import convert

_TWIN_STAGES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}


def _small(**changed):
    return ResNetBackbone(**({"depths": (1, 2, 1, 1)} | changed))


@pytest.mark.parametrize("file", ["mask2former_d2", "maskformer_d2"])
def test_published_names_and_shapes_fill_our_module_exactly(official_backbone_shapes, file):
    with torch.device("meta"):
        trunk = resnet50()
    theirs = official_backbone_shapes(file, "coco_panoptic_R50")
    ours = convert(theirs, RESNET).state
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in trunk.state_dict().items()
    }
    assert len(ours) == len(theirs)


@pytest.mark.parametrize(
    ("build", "twin"),
    [(resnet50, torchvision.models.resnet50), (resnet101, torchvision.models.resnet101)],
)
def test_torchvision_names_fill_our_module_exactly(build, twin):
    with torch.device("meta"):
        trunk, peer = build(norm="batch"), twin()
    ours = convert(peer.state_dict(), TORCHVISION_RESNET).state
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in trunk.state_dict().items()
    }


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_maps_are_those_of_torchvision(randomised, norm):
    peer = randomised(torchvision.models.resnet50()).eval()
    trunk = resnet50(norm=norm).eval()
    trunk.load_state_dict(convert(peer.state_dict(), TORCHVISION_RESNET).state)
    stages = IntermediateLayerGetter(peer, _TWIN_STAGES)
    images = torch.randn(1, 3, 64, 96)
    maps = trunk(images)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (dim, 64 // stride, 96 // stride)
        for dim, stride in zip(trunk.out_dims, (4, 8, 16, 32), strict=True)
    ]
    for map_, expected in zip(maps, stages(images).values(), strict=True):
        torch.testing.assert_close(map_, expected, rtol=1e-4, atol=1e-4 * expected.std().item())


def test_frozen_norm_has_no_parameters_and_ignores_the_mode(randomised):
    trunk = randomised(_small(norm="frozen"))
    assert not [name for name, _ in trunk.named_parameters() if ".bn" in name]
    images = torch.randn(2, 3, 32, 64)
    for train, evaluation in zip(trunk.train()(images), trunk.eval()(images), strict=True):
        assert torch.equal(train, evaluation)


def test_frozen_parts_get_no_gradient_and_keep_their_statistics(gradients_of):
    trunk = _small(norm="batch", num_frozen_parts=2)
    before = {k: v.clone() for k, v in trunk.state_dict().items() if "running" in k}
    gradients = gradients_of(trunk, torch.randn(2, 3, 32, 64))
    assert {name.split(".")[0] for name in gradients} == {"res3", "res4", "res5"}
    changed = {k for k, v in before.items() if not torch.equal(v, trunk.state_dict()[k])}
    assert {name.split(".")[0] for name in changed} == {"res3", "res4", "res5"}


def test_the_stride_is_in_the_3x3():
    block = _small().res3[0]
    assert isinstance(block.conv1, nn.Conv2d)
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_checkpointing_runs_blocks_again_and_changes_no_gradient(assert_recomputes):
    trunk = _small()
    twin = _small(has_checkpointing=True)
    assert_recomputes(trunk, twin, twin.res3[1], torch.randn(2, 3, 64, 96))
