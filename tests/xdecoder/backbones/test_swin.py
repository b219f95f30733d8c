"""Swin against recordings of OpenSeeD's, and against timm's where both mean the same."""

import json
import re

import pytest
import timm
import torch
from safetensors.torch import load_file

from xdecoder.backbones.swin import SwinBackbone, swin_b, swin_l, swin_s, swin_t
from xdecoder.convert.backbones import SWIN
from xdecoder.convert.rules import convert

# the rule that comes with the recordings; their own noise between two CPU settings is 4e-6
TOLERANCE = 1e-4


def _small(**changed):
    settings = {"depths": (2, 1, 2, 1), "num_heads": (1, 2, 3, 4), "window": 5}
    return SwinBackbone(12, **(settings | changed))


@pytest.mark.parametrize("variant", ["base", "decouple"])
def test_maps_are_the_official_ones(shared_dir, deviation, variant):
    folder = shared_dir / "golden" / "openseed" / "case_a" / variant
    settings = json.loads((folder / "config.json").read_text())["MODEL"]["BACKBONE"]["SWIN"]
    recorded = load_file(folder / "eval.safetensors")
    weights = load_file(folder / "weights.safetensors")
    theirs = {
        k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")
    }
    trunk = SwinBackbone(
        settings["EMBED_DIM"],
        depths=settings["DEPTHS"],
        num_heads=settings["NUM_HEADS"],
        window=settings["WINDOW_SIZE"],
        mlp_ratio=settings["MLP_RATIO"],
    )
    trunk.load_state_dict(convert(theirs, SWIN).state)
    maps = trunk.eval()(recorded["normalised_padded"])
    for stage, map_ in zip((2, 3, 4, 5), maps, strict=True):
        assert deviation(map_, recorded[f"backbone.res{stage}"]) < TOLERANCE


@pytest.mark.parametrize(
    ("file", "model", "build"),
    [
        ("mask2former_d2", "coco_panoptic_swin_tiny", swin_t),
        ("mask2former_d2", "coco_panoptic_swin_large_200q", swin_l),
        ("maskformer_d2", "coco_panoptic_swin_tiny", swin_t),
        ("openseed_swint", "openseed_swint_lang", swin_t),
        ("openseed_swint", "openseed_swinl_lang_decouple", swin_l),
    ],
)
def test_published_names_and_shapes_fill_our_module_exactly(
    official_backbone_shapes, file, model, build
):
    with torch.device("meta"):
        trunk = build()
    theirs = official_backbone_shapes(file, model)
    ours = convert(theirs, SWIN).state
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in trunk.state_dict().items()
    }
    indices = [k for k in theirs if k.endswith("relative_position_index")]
    assert len(ours) == len(theirs) - len(indices)


@pytest.mark.parametrize(
    ("build", "twin"),
    [(swin_s, "swin_small_patch4_window7_224"), (swin_b, "swin_base_patch4_window12_384")],
)
def test_sizes_are_those_of_timm(build, twin):
    with torch.device("meta"):
        trunk, peer = build(), timm.create_model(twin, num_classes=0)
    shapes = [v.shape for k, v in trunk.state_dict().items() if not k.startswith("norms.")]
    theirs = [v.shape for k, v in peer.state_dict().items() if not k.startswith("norm.")]
    assert sorted(shapes) == sorted(theirs)


def test_maps_are_those_of_timm_where_windows_fill_every_map(randomised):
    # timm pads after the shift, so only sizes without padding compare
    peer = timm.create_model(
        "swin_tiny_patch4_window7_224",
        embed_dim=12,
        depths=(2, 1, 2, 1),
        num_heads=(1, 2, 3, 4),
        num_classes=0,
        strict_img_size=False,
        always_partition=True,
    )
    weights = {}
    for name, tensor in randomised(peer).state_dict().items():
        # timm's merging begins a stage, the official one ends the stage before
        moved = re.sub(
            r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name
        )
        weights[moved.replace("norm.", "norm3.") if name.startswith("norm.") else moved] = tensor
    for i, width in enumerate((12, 24, 48)):
        weights |= {f"norm{i}.weight": torch.ones(width), f"norm{i}.bias": torch.zeros(width)}
    trunk = SwinBackbone(12, depths=(2, 1, 2, 1), num_heads=(1, 2, 3, 4), window=7)
    trunk.load_state_dict(convert(weights, SWIN).state)
    images = torch.randn(2, 3, 224, 448)
    expected = peer.eval().forward_features(images).permute(0, 3, 1, 2)
    torch.testing.assert_close(trunk.eval()(images)[3], expected, rtol=1e-4, atol=1e-5)


def test_sizes_are_rounded_up():
    maps = _small().eval()(torch.randn(2, 3, 50, 70))
    assert [tuple(m.shape) for m in maps] == [
        (2, 12, 13, 18),
        (2, 24, 7, 9),
        (2, 48, 4, 5),
        (2, 96, 2, 3),
    ]


def test_rows_of_zeros_below_an_image_of_odd_size_change_nothing(randomised):
    trunk = randomised(_small()).eval()
    image = torch.randn(1, 3, 33, 42)
    padded = torch.nn.functional.pad(image, (0, 2, 0, 3))
    for map_, of_padded in zip(trunk(image), trunk(padded), strict=True):
        assert torch.equal(map_, of_padded)


def test_checkpointing_runs_blocks_again_and_changes_no_gradient(assert_recomputes):
    trunk = _small(drop_path=0.4)
    twin = _small(drop_path=0.4, has_checkpointing=True)
    assert_recomputes(trunk, twin, twin.stages[2].blocks[1], torch.randn(2, 3, 34, 46))


def test_drop_path_grows_from_zero_to_its_value_over_the_blocks():
    trunk = _small(drop_path=0.5)
    blocks = [block for stage in trunk.stages for block in stage.blocks]
    rates = [block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
