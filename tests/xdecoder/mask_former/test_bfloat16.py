"""The whole model in bfloat16: weights, images, operators and all between.

The measure is a float32 model whose weights and images were rounded to bfloat16 once. What it is
off by is the price of the format itself; computing in bfloat16 rounds every result again, and may
cost as much once more, not more than twice in all.
"""

import copy

import pytest
import torch

from xdecoder.batch import SegmentTargets
from xdecoder.config import PixelDecoderConfig
from xdecoder.losses.draws import Draws
from xdecoder.losses.points import PointSampling
from xdecoder.mask_former import decoders
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import (
    MaskFormerConfig,
    MaskLossConfig,
    QueryDecoderConfig,
    SwinConfig,
)
from xdecoder.mask_former.criterion import mask_losses

SEEDS = (0, 1)
SIZE_HW = (64, 384)


def model_of(kind, seed):
    torch.manual_seed(seed)
    is_masked = kind == "masked"
    config = MaskFormerConfig(
        num_classes=7,
        backbone=SwinConfig(
            dim=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window=4, drop_path=0.0
        ),
        pixel_decoder=PixelDecoderConfig(
            kind="msdeform" if is_masked else "fpn_transformer",
            num_layers=3,
            num_heads=4,
            ffn_dim=128,
        ),
        decoder=QueryDecoderConfig(
            kind=kind, dim=64, num_layers=4, num_heads=4, ffn_dim=128, num_queries=12
        ),
        pixel_dim=64,
        mask_dim=64,
    )
    model = build_mask_former(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn(parameter.shape)
    return model, 255 * torch.rand(2, 3, *SIZE_HW)


def versions_of(kind, seed):
    """The exact model, the one in bfloat16, and the one that was rounded once."""
    model, images = model_of(kind, seed)
    low = copy.deepcopy(model).bfloat16()
    rounded = copy.deepcopy(low).float()
    return (
        (model.double(), images.double()),
        (low, images.bfloat16()),
        (rounded, images.bfloat16().float()),
    )


def tensors_of(model, images):
    with torch.no_grad():
        pyramid = model.encode_images(images)
        output = model(images)
    assert output.mask_features.dtype == next(model.parameters()).dtype
    named = {f"level {i}": level for i, level in enumerate(pyramid.levels)}
    named["mask features"] = pyramid.mask_features
    for i, layer in enumerate(output.layers):
        named[f"classes {i}"] = layer.class_logits
        named[f"masks {i}"] = output.mask_logits(i)
    return named


def relative_squares(actual, exact):
    return {
        name: ((actual[name].double() - value).square().mean() / value.square().mean()).item()
        for name, value in exact.items()
    }


@pytest.fixture
def bits(monkeypatch):
    """The attention bits that a run decides on, or plays back.

    A bit is the sign of a mask. Where rounding turns it, attention looks elsewhere: another
    decision, whose effect has nothing to do with the size of an error.
    """
    decided, played = [], []
    decide = decoders.mask_bits

    def mask_bits(embeddings, features):
        decided.append(decide(embeddings, features))
        return played.pop(0) if played else decided[-1]

    monkeypatch.setattr(decoders, "mask_bits", mask_bits)
    return decided, played


@pytest.mark.parametrize("kind", ["masked", "detr"])
def test_errors_are_within_twice_those_of_rounding_weights_and_images(kind, bits):
    decided, played = bits
    low, rounded = {}, {}
    for seed in SEEDS:
        exact_run, *runs = versions_of(kind, seed)
        decided.clear()
        exact = tensors_of(*exact_run)
        of_exact = list(decided)
        for (model, images), squares in zip(runs, (low, rounded), strict=True):
            played[:] = of_exact
            found = relative_squares(tensors_of(model, images), exact)
            for name, value in found.items():
                squares[name] = squares.get(name, 0.0) + value
    ratios = {name: (low[name] / rounded[name]) ** 0.5 for name in low}
    assert max(ratios.values()) <= 2, ratios
    # the format itself costs a part in a hundred, or the comparison says nothing
    assert all(0 < value < 0.01 for value in rounded.values())


def test_attention_is_decided_otherwise_at_most_twice_as_often(bits):
    decided, played = bits
    turned = [0, 0]
    for seed in SEEDS:
        of_exact = []
        for place, (model, images) in enumerate(versions_of("masked", seed), start=-1):
            decided.clear()
            # every decision is taken from where the exact model came by its own
            played[:] = of_exact
            with torch.no_grad():
                model(images)
            if place < 0:
                of_exact = list(decided)
                continue
            for exact, own in zip(of_exact, decided, strict=True):
                turned[place] += num_bits((exact.bits ^ own.bits).flatten())
    low, rounded = turned
    assert 0 < low <= 2 * rounded, turned


def num_bits(words):
    return sum(bin(word & (1 << 64) - 1).count("1") for word in words.tolist())


@pytest.mark.parametrize("kind", ["masked", "detr"])
def test_losses_train_every_weight_of_a_model_in_bfloat16(kind):
    model, images = model_of(kind, 0)
    model.bfloat16().train()
    segments = _segments(images)
    config = MaskLossConfig(
        kind="points" if kind == "masked" else "dense", points=PointSampling(num_points=64)
    )
    output = model(images.bfloat16())
    losses = mask_losses(output, segments, Draws(1), config, {"label_weight": 1.0, "segments": 5.0})
    (losses.ce.sum() + losses.mask.sum() + losses.dice.sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients.values())
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def _segments(images):
    return [
        SegmentTargets(masks=torch.rand(count, *SIZE_HW) > 0.5, class_ids=torch.arange(count))
        for count in (3, 2)[: len(images)]
    ]
