"""Level order, dropout and named trunks as settings."""

import pytest
import torch

from xdecoder.config import BackboneConfig, ConfigError, PixelDecoderConfig
from xdecoder.mask_former.build import build_head, build_mask_former
from xdecoder.mask_former.config import MaskFormerConfig, QueryDecoderConfig
from xdecoder.pixel_decoder import Pyramid

CHANNELS = (8, 12, 20, 28)
SIZES_HW = ((16, 24), (8, 12), (4, 6), (2, 3))


def head_of(kind="masked", num_layers=3, dropout=0.0, level_order=(32, 16, 8), **pixel_decoder):
    is_masked = kind == "masked"
    config = MaskFormerConfig(
        num_classes=5,
        pixel_dim=32,
        mask_dim=32,
        pixel_decoder=PixelDecoderConfig(
            kind="msdeform" if is_masked else "fpn_transformer",
            num_layers=1,
            num_heads=4,
            ffn_dim=48,
            **pixel_decoder,
        ),
        decoder=QueryDecoderConfig(
            kind=kind,
            dim=32,
            num_layers=num_layers,
            num_heads=4,
            ffn_dim=40,
            num_queries=6,
            dropout=dropout,
            level_order=level_order,
        ),
    )
    torch.manual_seed(0)
    return build_head(config, CHANNELS)


def maps():
    return [torch.randn(2, dim, *size_hw) for dim, size_hw in zip(CHANNELS, SIZES_HW, strict=True)]


@pytest.mark.parametrize(("order", "seen"), [((32, 16, 8), 2), ((8, 16, 32), 0), ((16,), 1)])
def test_the_first_layer_looks_at_the_first_level_of_the_order(order, seen):
    """`seen` counts the levels of the pyramid from the finest one."""
    decoder = head_of(num_layers=1, level_order=order).decoder.eval()
    levels = [torch.randn(1, 32, *size_hw) for size_hw in reversed(SIZES_HW[1:])]
    features = torch.randn(1, 32, *SIZES_HW[0])

    def classes(levels):
        return decoder(Pyramid(levels=tuple(levels), mask_features=features))[-1].class_logits

    before = classes(levels)
    changes = []
    for place in range(len(levels)):
        other = list(levels)
        other[place] = other[place] + 1
        changes.append(not torch.equal(classes(other), before))
    finest_first = changes[::-1]
    assert finest_first == [place == seen for place in range(3)]


def test_the_levels_of_the_encoder_may_be_counted_from_the_finest():
    coarse, fine = head_of(), head_of(is_finest_first=True)
    weights = coarse.state_dict()
    # the same weights stored the other way round: projections, embeddings, and samples by level
    turned = dict(weights)
    prefix = "pixel_decoder.input_projections."
    for name in weights:
        if name.startswith(prefix):
            place = int(name[len(prefix)])
            turned[f"{prefix}{2 - place}{name[len(prefix) + 1 :]}"] = weights[name]
    turned["pixel_decoder.level_embedding.weight"] = weights[
        "pixel_decoder.level_embedding.weight"
    ].flip(0)
    for part in ("sampling_offsets", "attention_weights"):
        for kind in ("weight", "bias"):
            name = f"pixel_decoder.encoder.0.attention.{part}.{kind}"
            by_level = weights[name].unflatten(0, (4, 3, -1))
            turned[name] = by_level.flip(1).flatten(0, 2)
    fine.load_state_dict(turned)
    inputs = maps()
    first, second = coarse.pixel_decoder(inputs), fine.pixel_decoder(inputs)
    for one, other in zip(first.levels, second.levels, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(first.mask_features, second.mask_features)


def test_dropout_acts_in_training_only_and_everywhere_it_is_named():
    inputs = maps()
    plain, dropping = head_of("detr"), head_of("detr", dropout=0.1)
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    expected = plain.eval()(inputs, (64, 96)).layers[-1].class_logits
    assert torch.equal(dropping.eval()(inputs, (64, 96)).layers[-1].class_logits, expected)
    dropping.train()
    first, second = (dropping(inputs, (64, 96)).layers[-1].class_logits for _ in range(2))
    assert not torch.equal(first, second)
    # every layer's share of values that are dropped
    layer = dropping.decoder.layers[0]
    kept = layer.drop(torch.ones(1000, 10))
    assert 0.07 < (kept == 0).float().mean() < 0.13
    assert layer.self_attention.dropout == layer.cross_attention.dropout == 0.1
    assert layer.ffn.drop.p == 0.1


def test_dropout_of_the_encoder_acts_in_training_only():
    config = PixelDecoderConfig(kind="fpn_transformer", num_layers=1, num_heads=4, dropout=0.5)
    model = MaskFormerConfig(
        pixel_dim=32, mask_dim=32, pixel_decoder=config, decoder=QueryDecoderConfig(kind="detr")
    )
    head = build_head(model, CHANNELS)
    inputs = maps()
    still = [head.pixel_decoder.eval()(inputs).mask_features for _ in range(2)]
    moving = [head.pixel_decoder.train()(inputs).mask_features for _ in range(2)]
    assert torch.equal(*still)
    assert not torch.equal(*moving)


def test_a_trunk_of_any_name_serves_the_head():
    backbone = BackboneConfig(
        name="tf_efficientnet_lite0", pixel_mean=(1.0, 2.0, 3.0), pixel_std=(4.0, 5.0, 6.0)
    )
    config = MaskFormerConfig(
        num_classes=5,
        backbone=backbone,
        pixel_dim=32,
        mask_dim=32,
        pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=4, ffn_dim=48),
        decoder=QueryDecoderConfig(dim=32, num_layers=1, num_heads=4, ffn_dim=40, num_queries=6),
    )
    model = build_mask_former(config, has_initial_weights=False).eval()
    assert (model.pixel_mean, model.pixel_std) == (backbone.pixel_mean, backbone.pixel_std)
    output = model(255 * torch.rand(1, 3, 64, 96))
    assert output.layers[-1].class_logits.shape == (1, 6, 6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: QueryDecoderConfig(level_order=(32, 4)), r"among \(32, 16, 8\); got \(32, 4\)"),
        (lambda: QueryDecoderConfig(level_order=()), r"model.decoder.level_order must list"),
        (lambda: QueryDecoderConfig(kind="detr", dropout=1.0), "got 1.0 with 'detr'"),
        (lambda: QueryDecoderConfig(dropout=0.1), "0 in a masked decoder, which has none"),
        (lambda: PixelDecoderConfig(dropout=0.1), "0 with msdeform, which has none; got 0.1"),
        (
            lambda: MaskFormerConfig(class_names=("a", "b")),
            r"model.class_names must be empty or have model.num_classes=133 entries; got 2",
        ),
        (
            lambda: MaskFormerConfig(num_classes=2, is_thing=(True,)),
            r"model.is_thing must be empty or have model.num_classes=2 entries; got 1",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
