"""Trunks by name, with their switches."""

from dataclasses import replace

import pytest
import torch

from xdecoder.backbones import STRIDES
from xdecoder.backbones.resnet import FrozenBatchNorm2d
from xdecoder.build import OWN_BACKBONES, build_backbone, build_model
from xdecoder.config import BackboneConfig, ConfigError

# widths of the maps at strides 4 to 32. Source: the official configurations
_WIDTHS = {
    "focal_t": (96, 192, 384, 768),
    "focal_l": (192, 384, 768, 1536),
    "davit_d3": (128, 256, 512, 1024),
    "davit_d5": (256, 512, 1024, 2048),
    "swin_t": (96, 192, 384, 768),
    "swin_s": (96, 192, 384, 768),
    "swin_b": (128, 256, 512, 1024),
    "swin_l": (192, 384, 768, 1536),
    "r50": (256, 512, 1024, 2048),
    "r101": (256, 512, 1024, 2048),
}


def _on_meta(name, **changes):
    with torch.device("meta"):
        return build_backbone(BackboneConfig(name=name, **changes), has_initial_weights=False)


def test_every_own_trunk_has_a_published_width():
    assert _WIDTHS.keys() == OWN_BACKBONES.keys()


@pytest.mark.parametrize("name", sorted(OWN_BACKBONES))
def test_a_trunk_gives_maps_of_its_published_widths_and_strides(name):
    trunk = _on_meta(name)
    assert trunk.out_dims == _WIDTHS[name]
    maps = trunk(torch.empty(1, 3, 64, 96, device="meta"))
    sizes = [(width, 64 // s, 96 // s) for width, s in zip(_WIDTHS[name], STRIDES, strict=True)]
    assert [tuple(map_.shape[1:]) for map_ in maps] == sizes


@pytest.mark.parametrize("name", ["test_efficientnet", "r50", "swin_t", "focal_t"])
def test_checkpointing_runs_blocks_again_and_changes_no_gradient(name):
    torch.manual_seed(0)
    config = BackboneConfig(name=name, freeze_norm=True)
    plain = build_backbone(config, has_initial_weights=False).train()
    again = build_backbone(replace(config, has_checkpointing=True), has_initial_weights=False)
    again.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 96)
    # tensors that backward will need: checkpointing keeps fewer of them
    kept = [_num_kept(trunk, images) for trunk in (plain, again.train())]
    assert kept[1] < 0.7 * kept[0]
    gradients = [_gradients(trunk, images) for trunk in (plain, again)]
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, msg=key)


def _num_kept(trunk, images):
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trunk(images)
    return sum(sizes)


def _gradients(trunk, images):
    trunk.zero_grad()
    sum(map_.square().mean() for map_ in trunk(images)).backward()
    return {name: p.grad.clone() for name, p in trunk.named_parameters() if p.grad is not None}


def test_frozen_parts_of_a_resnet_are_not_trained():
    trunk = _on_meta("r50", num_frozen_parts=2, freeze_norm=True)
    trained = {name.split(".")[0] for name, p in trunk.named_parameters() if p.requires_grad}
    assert trained == {"res3", "res4", "res5"}
    assert isinstance(trunk.res3[0].bn1, FrozenBatchNorm2d)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "swin_t", "num_frozen_parts": 1}, "must be 0 for 'swin_t': only r50 and r101"),
        ({"name": "r50", "num_frozen_parts": 6}, r"must be in 0\.\.5 \(stem, res2 to res5\)"),
        ({"name": "r101", "drop_path": 0.1}, "drop_path must be 0 for 'r101'"),
    ],
)
def test_switches_that_a_trunk_does_not_have_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        BackboneConfig(**settings)


def test_a_model_takes_the_trunk_of_its_settings(small_config):
    config = replace(small_config, backbone=BackboneConfig(name="r50"))
    with torch.device("meta"):
        model = build_model(config, has_initial_weights=False)
    assert model.image_projection.in_features == 2048
