"""Trunks of classifiers, as files of three programs hold them."""

import pytest
import torch
from torchvision.models import resnet

from pipelines import convert
from pipelines.convert import Converted, check, write_ours
from pipelines.initial_weights import load_initial_weights
from xdecoder.config import ModelConfig, PixelDecoderConfig
from xdecoder.convert.rules import CheckpointError
from xdecoder.convert.trunks import is_trunk, read_trunk
from xdecoder.mask_former.build import build_mask_former, build_trunk
from xdecoder.mask_former.config import MaskFormerConfig, QueryDecoderConfig, SwinConfig
from xdecoder.mask_former.published import TRUNKS, named_trunk

REDUCED = MaskFormerConfig(
    num_classes=4,
    backbone=SwinConfig(
        dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window=4, drop_path=0.0
    ),
    pixel_dim=32,
    mask_dim=32,
    pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=4, ffn_dim=48),
    decoder=QueryDecoderConfig(dim=32, num_layers=1, num_heads=4, ffn_dim=40, num_queries=6),
)


def swin_file(config):
    """Names of microsoft/Swin-Transformer for a trunk of ours."""
    with torch.device("meta"):
        ours = build_trunk(config, False).state_dict()
    names = (
        ("embeddings.0.conv.", "patch_embed.proj."),
        ("embeddings.0.norm.", "patch_embed.norm."),
        *((f"embeddings.{i + 1}.norm.", f"layers.{i}.downsample.norm.") for i in range(3)),
        *(
            (f"embeddings.{i + 1}.projection.", f"layers.{i}.downsample.reduction.")
            for i in range(3)
        ),
        ("stages.", "layers."),
        ("attention.output_projection.", "attn.proj."),
        ("attention.offset_bias", "attn.relative_position_bias_table"),
        ("attention.", "attn."),
        ("mlp.0.", "mlp.fc1."),
        ("mlp.2.", "mlp.fc2."),
    )
    theirs = {}
    for name, tensor in ours.items():
        if name.startswith("norms."):
            continue
        for old, new in names:
            name = name.replace(old, new)
        theirs[name] = tensor
    extra = ("norm.weight", "norm.bias", "head.weight", "head.bias", "layers.0.blocks.1.attn_mask")
    return theirs | {name: torch.empty(3, device="meta") for name in extra}


def torchvision_file(depths):
    with torch.device("meta"):
        return resnet.ResNet(resnet.Bottleneck, list(depths)).state_dict()


def detectron2_file(depths):
    """As detectron2's convert-torchvision-to-d2.py renames them."""
    theirs = {}
    for name, tensor in torchvision_file(depths).items():
        name = name if "layer" in name else f"stem.{name}"
        for number in (1, 2, 3, 4):
            name = name.replace(f"layer{number}", f"res{number + 1}")
        for number in (1, 2, 3):
            name = name.replace(f"bn{number}", f"conv{number}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        theirs[name] = tensor
    return theirs


@pytest.mark.parametrize(
    ("name", "state"),
    [
        *((name, swin_file(TRUNKS[name])) for name in ("swin_t", "swin_s", "swin_b", "swin_l")),
        ("r50", torchvision_file((3, 4, 6, 3))),
        ("r101", torchvision_file((3, 4, 23, 3))),
        ("r50", detectron2_file((3, 4, 6, 3))),
        ("r101", detectron2_file((3, 4, 23, 3))),
    ],
)
def test_every_weight_of_the_trunk_is_filled(name, state):
    assert is_trunk(state)
    found, conversion = read_trunk(state)
    assert found == name
    assert len(conversion.report) == len(state)
    with torch.device("meta"):
        wanted = build_trunk(named_trunk(name), False).state_dict()
    # the norms of the maps are no part of a classifier
    wanted = {key: tensor.shape for key, tensor in wanted.items() if not key.startswith("norms.")}
    filled = {key.removeprefix("backbone."): t.shape for key, t in conversion.state.items()}
    assert filled == wanted


def test_a_file_of_a_trunk_is_read_as_initial_weights(monkeypatch, tmp_path):
    state = detectron2_file((3, 4, 6, 3))
    monkeypatch.setattr(convert, "read_detectron2_pickle", lambda path: state)
    converted = convert.read(tmp_path / "R-50.pkl")
    assert converted.is_initial
    assert converted.config.backbone.name == "r50"
    check(converted)
    lines = convert.report_lines(converted)
    assert "dropped  stem.fc.weight -> unused: the classifier" in lines


def test_a_trunk_of_another_size_is_refused():
    with pytest.raises(
        CheckpointError, match=r"one of r50, .* got stages of \(1, 1, 1, 1\) blocks"
    ):
        read_trunk(torchvision_file((1, 1, 1, 1)))
    with pytest.raises(CheckpointError, match="and a width of 16"):
        read_trunk(swin_file(REDUCED.backbone) | {})


def test_training_starts_from_a_trunk_and_all_else_is_random(tmp_path):
    source, model = build_mask_former(REDUCED), build_mask_former(REDUCED)
    trunk = {
        name: tensor
        for name, tensor in source.state_dict().items()
        if name.startswith("backbone.") and not name.startswith("backbone.norms.")
    }
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    converted = Converted(config=ModelConfig(), state=trunk, report=(), unused={}, is_initial=True)
    write_ours(converted, tmp_path / "trunk")
    load_initial_weights(model, tmp_path / "trunk")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trunk.get(name, before[name]))
