"""Our models with the weights of `transformers` models, against what those compute.

Tolerance: the recorded agreement between the official code and `transformers` is 2e-5.
"""

import pytest
import torch

from pipelines.convert import Converted, load_mask_former, read, write_hf, write_ours
from xdecoder.batch import SegmentTargets
from xdecoder.config import PixelDecoderConfig
from xdecoder.losses.criterion import label_weight
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.points import PointSampling
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import (
    MaskFormerConfig,
    MaskLossConfig,
    QueryDecoderConfig,
    SwinConfig,
    maskformer_losses,
)
from xdecoder.mask_former.criterion import mask_losses

ATOL = 1e-4


class GlobalDraws(UniformSource):
    """Draws from torch's global generator, as `transformers` does."""

    def uniform(self, *shape):
        return torch.rand(shape)


def _ours(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    write_ours(read(tmp_path / "theirs"), tmp_path / "ours")
    model, _ = load_mask_former(tmp_path / "ours")
    # both sides read normalised pixels here
    model.pixel_mean, model.pixel_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return model


def _close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=ATOL, rtol=0)


def _losses(model, output, targets, config):
    segments = [SegmentTargets(masks=masks, class_ids=ids) for masks, ids in targets]
    counts = [len(ids) for _, ids in targets]
    divide = {
        "label_weight": label_weight(counts, model.num_queries, config.background),
        "segments": float(sum(counts)),
    }
    return mask_losses(output, segments, GlobalDraws(), config, divide)


@torch.no_grad()
def test_mask2former_has_the_hidden_states_and_outputs_of_transformers(
    their_mask2former, pixels, tmp_path
):
    model = _ours(their_mask2former, tmp_path)
    theirs = their_mask2former(pixels, output_hidden_states=True, output_auxiliary_logits=True)
    maps = model.backbone(pixels)
    for ours, expected in zip(maps, theirs.encoder_hidden_states, strict=True):
        _close(ours, expected)
    pyramid = model.head.pixel_decoder(maps)
    for ours, expected in zip(pyramid.levels, theirs.pixel_decoder_hidden_states, strict=True):
        _close(ours, expected)
    _close(pyramid.mask_features, theirs.pixel_decoder_last_hidden_state)
    output = model(pixels)
    _close(output.layers[-1].class_logits, theirs.class_queries_logits)
    _close(output.mask_logits(-1), theirs.masks_queries_logits)
    assert len(theirs.auxiliary_logits) == len(output.layers) - 1
    for i, expected in enumerate(theirs.auxiliary_logits):
        _close(output.layers[i].class_logits, expected["class_queries_logits"])
        _close(output.mask_logits(i), expected["masks_queries_logits"])


@torch.no_grad()
def test_mask2former_has_the_loss_of_transformers_under_the_same_draws(
    their_mask2former, pixels, targets, tmp_path
):
    model = _ours(their_mask2former, tmp_path)
    torch.manual_seed(7)
    theirs = their_mask2former(
        pixels,
        mask_labels=[masks.float() for masks, _ in targets],
        class_labels=[ids for _, ids in targets],
    )
    config = MaskLossConfig(points=PointSampling(num_points=128))
    output = model(pixels)
    torch.manual_seed(7)
    losses = _losses(model, output, targets, config)
    total = config.ce * losses.ce + config.mask * losses.mask + config.dice * losses.dice
    torch.testing.assert_close(total.sum(), theirs.loss.squeeze(), atol=ATOL, rtol=1e-6)


@torch.no_grad()
def test_maskformer_has_the_hidden_states_outputs_and_loss_of_transformers(
    their_maskformer, pixels, targets, tmp_path
):
    model = _ours(their_maskformer, tmp_path)
    theirs = their_maskformer(
        pixels,
        output_hidden_states=True,
        mask_labels=[masks.float() for masks, _ in targets],
        class_labels=[ids for _, ids in targets],
    )
    maps = model.backbone(pixels)
    pyramid = model.head.pixel_decoder(maps)
    _close(pyramid.mask_features, theirs.pixel_decoder_last_hidden_state)
    output = model(pixels)
    _close(output.layers[-1].class_logits, theirs.class_queries_logits)
    _close(output.mask_logits(-1), theirs.masks_queries_logits)
    config = maskformer_losses()
    losses = _losses(model, output, targets, config)
    # theirs counts the final prediction alone
    final = (
        config.ce * losses.ce[-1] + config.mask * losses.mask[-1] + config.dice * losses.dice[-1]
    )
    torch.testing.assert_close(final, theirs.loss.squeeze(), atol=ATOL, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["masked", "detr"])
def test_transformers_computes_the_same_from_a_folder_that_we_wrote(transformers, kind, tmp_path):
    model, config = _own_model(kind)
    converted = Converted(config=config, state=model.state_dict(), report=(), unused={})
    write_hf(converted, tmp_path / "ours")
    theirs, report = transformers.AutoModelForUniversalSegmentation.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not report["unexpected_keys"]
    # a norm behind the trunk that no output depends on, and what follows from the window's size
    derived = (".layernorm.weight", ".layernorm.bias", ".relative_position_index")
    assert all(key.endswith(derived) for key in report["missing_keys"]), report["missing_keys"]
    assert theirs.config.id2label == dict(enumerate(config.class_names))
    pixels = torch.randn(2, 3, 96, 160)
    found = theirs.eval()(pixels)
    model.pixel_mean, model.pixel_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    output = model(pixels)
    _close(output.layers[-1].class_logits, found.class_queries_logits)
    _close(output.mask_logits(-1), found.masks_queries_logits)
    # what transformers saves again, we read as what we wrote
    theirs.save_pretrained(tmp_path / "again")
    again = read(tmp_path / "again")
    assert again.config.class_names == config.class_names
    assert again.state.keys() == model.state_dict().keys()
    assert all(torch.equal(again.state[name], value) for name, value in model.state_dict().items())


def _own_model(kind):
    is_masked = kind == "masked"
    torch.manual_seed(6)
    config = MaskFormerConfig(
        num_classes=4,
        class_names=("sky", "red car", "dog", "wall-other-merged"),
        backbone=SwinConfig(
            dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window=4, drop_path=0.0
        ),
        pixel_decoder=PixelDecoderConfig(
            kind="msdeform" if is_masked else "fpn_transformer",
            num_layers=2 if is_masked else 0,
            num_heads=4,
            ffn_dim=96,
        ),
        decoder=QueryDecoderConfig(
            kind=kind,
            dim=64,
            num_layers=3,
            num_heads=4,
            ffn_dim=128,
            num_queries=12,
            has_input_projection=not is_masked,
        ),
        pixel_dim=64,
        mask_dim=64,
    )
    model = build_mask_former(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return model, config
