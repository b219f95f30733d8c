"""Training terms, gradients, padding, empty images and prediction of both families."""

import pytest
import torch

from xdecoder.batch import PhraseTargets, SegmentationBatch, SegmentTargets, Vocabulary
from xdecoder.config import ConfigError, PixelDecoderConfig
from xdecoder.losses.draws import Draws
from xdecoder.losses.points import PointSampling
from xdecoder.losses.world import World
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import (
    MaskFormerConfig,
    MaskLossConfig,
    QueryDecoderConfig,
    SwinConfig,
    maskformer_losses,
)
from xdecoder.mask_former.task import MaskTask, predict, read_class_names

NAMES = ("sky", "dog", "cat", "tree", "car")
SIZE_HW = (64, 96)


def _model(kind):
    is_masked = kind == "masked"
    return build_mask_former(
        MaskFormerConfig(
            num_classes=len(NAMES),
            backbone=SwinConfig(
                dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window=4, drop_path=0.0
            ),
            pixel_decoder=PixelDecoderConfig(
                kind="msdeform" if is_masked else "fpn_transformer",
                num_layers=1 if is_masked else 0,
                num_heads=4,
                ffn_dim=48,
            ),
            decoder=QueryDecoderConfig(
                kind=kind, dim=32, num_layers=3, num_heads=4, ffn_dim=40, num_queries=6
            ),
            pixel_dim=32,
            mask_dim=32,
        )
    )


def _task(kind):
    points = MaskLossConfig(points=PointSampling(num_points=64))
    return MaskTask(config=points if kind == "masked" else maskformer_losses(), world=World())


def _batch(counts):
    images = torch.rand(len(counts), 3, *SIZE_HW) * 255
    segments = tuple(
        SegmentTargets(
            masks=torch.rand(count, *SIZE_HW) > 0.6,
            class_ids=torch.arange(count) % len(NAMES),
        )
        for count in counts
    )
    return SegmentationBatch(
        keys=tuple(map(str, counts)),
        images=images,
        valid_sizes_hw=(SIZE_HW,) * len(counts),
        vocabulary=Vocabulary(names=NAMES, is_thing=(False, True, True, False, True)),
        segments=segments,
        phrases=(PhraseTargets(phrases=(), masks=torch.zeros(0, *SIZE_HW).bool()),) * len(counts),
    )


@pytest.mark.parametrize(("kind", "num_predictions"), [("masked", 4), ("detr", 3)])
@pytest.mark.parametrize("counts", [(3, 2), (2, 0), (0, 0), (1, 9)])
def test_every_prediction_has_finite_terms_and_every_parameter_a_gradient_path(
    kind, num_predictions, counts
):
    model = _model(kind)
    terms = _task(kind).losses(model, _batch(counts), Draws(1))
    assert len(terms) == 3 * num_predictions
    assert all(torch.isfinite(value) for value in terms.values())
    sum(terms.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("kind", ["masked", "detr"])
def test_an_empty_mask_is_a_target_like_others(kind):
    batch = _batch((2,))
    batch.segments[0].masks[1] = False
    terms = _task(kind).losses(_model(kind), batch, Draws(1))
    assert all(torch.isfinite(value) for value in terms.values())


def test_a_nan_is_reported_with_the_tensors_that_have_it():
    model = _model("masked")
    with torch.no_grad():
        model.head.decoder.heads.mask_mlp.layers[0].bias[0] = float("nan")
    with pytest.raises(ValueError, match="mask_logits"):
        _task("masked").losses(model, _batch((2,)), Draws(1))


def test_another_vocabulary_is_refused():
    batch = _batch((2,))
    object.__setattr__(batch, "vocabulary", Vocabulary(names=("a",), is_thing=(True,)))
    with pytest.raises(ValueError, match="labelled with the model's 5 classes; got 1"):
        _task("masked").losses(_model("masked"), batch, Draws(1))


@pytest.mark.parametrize("kind", ["masked", "detr"])
def test_prediction_has_the_size_that_is_asked_for(kind):
    model = _model(kind).eval()
    found = predict(model, torch.rand(3, 50, 70) * 255, (33, 47))
    assert found.class_probs.shape == (6, 6)
    assert found.masks.whole().shape == (6, 33, 47)
    torch.testing.assert_close(found.class_probs.sum(1), torch.ones(6))


def test_padding_of_a_batch_does_not_reach_the_normalised_image():
    model = _model("detr").eval()
    images = torch.full((1, 3, *SIZE_HW), 200.0)
    valid = [(40, 60)]
    padded = images.clone()
    padded[:, :, 40:] = 7.0
    padded[:, :, :, 60:] = 9.0
    first, second = model(images, valid), model(padded, valid)
    assert torch.equal(first.layers[-1].class_logits, second.layers[-1].class_logits)


def test_class_names_are_read_one_per_line():
    assert read_class_names(["# mine", "dog  # an animal", "", " red car "]) == ("dog", "red car")
    with pytest.raises(ValueError, match="more than once: dog"):
        read_class_names(["dog", "dog"])
    with pytest.raises(ValueError, match="got 0 names"):
        read_class_names(["# nothing"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_dim": 40}, "model.pixel_dim must be a multiple of 32"),
        ({"num_classes": 0}, "must be at least 1; got 0 and 32"),
        ({"decoder": QueryDecoderConfig(dim=60)}, r"decoder.num_heads must divide .*=60; got 8"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        MaskFormerConfig(**change)
