"""Published schedules and sizes of OpenSeeD, and what is ours in them."""

import pytest
import torch

from pipelines.engine.schedule import learning_rate_factor
from pipelines.families import build_model_of
from pipelines.recipes import RECIPES
from xdecoder.openseed.config import BoxLossConfig, OpenSeeDConfig
from xdecoder.text.prompts import TEMPLATES


def _num_values(name):
    with torch.device("meta"):
        model = build_model_of(RECIPES[name]().model, has_initial_weights=False)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "batch_sizes"), [("t", (16, 32)), ("l", (16, 32))])
def test_recipes_have_the_published_numbers(name, batch_sizes):
    config = RECIPES[f"openseed_swin_{name}"]()
    assert config.name == f"openseed_swin_{name}"
    assert config.steps == 368_750
    data, optimizer = config.data, config.optimizer
    assert (data.segmentation.batch_size, data.detection.batch_size) == batch_sizes
    for part in (data.segmentation, data.detection):
        assert part.size_hw == (1024, 1024)
        assert part.augment.scale_range == (0.1, 2.0)
    assert data.protected == ("coco-2017-val",)
    rates = (optimizer.learning_rate, optimizer.backbone_multiplier, optimizer.text_multiplier)
    assert rates == (1e-4, 0.1, 0.1)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.05, 0.01)
    for step, factor in ((327_770, 1.0), (327_790, 0.1), (355_080, 0.1), (355_100, 0.01)):
        assert learning_rate_factor(config.schedule, step, config.steps) == pytest.approx(factor)
    losses = config.losses
    assert isinstance(losses, BoxLossConfig)
    assert (losses.label, losses.mask, losses.dice, losses.box, losses.giou) == (4, 5, 5, 5, 2)
    assert losses.points.num_points == 12544
    assert losses.templates == TEMPLATES
    assert losses.denoising.num_queries == 100
    assert losses.splits_stuff
    assert losses.assistance.is_on


def test_models_are_the_released_ones_without_their_oddities():
    small, large = (RECIPES[f"openseed_swin_{name}"]().model for name in "tl")
    for model in (small, large):
        assert isinstance(model, OpenSeeDConfig)
        assert (model.decoder.num_queries, model.decoder.num_background) == (300, 100)
        assert not model.decoder.norms_twice
        assert model.decoder.proposal_sizes == "with_stride"
        assert model.text.context_length == 18
    assert (small.pyramid.encodes_finest, large.pyramid.encodes_finest) == (False, True)
    # the released files with 18 tokens, and 26,000 values of 100 learned queries in the smaller one
    assert _num_values("openseed_swin_t") == 116_179_263 + 26_000
    assert _num_values("openseed_swin_l") == 286_444_137


def test_the_recipe_of_the_scenes_learns_from_both_kinds_of_data():
    config = RECIPES["openseed_scenes"]()
    data = config.data
    assert data.segmentation.batch_size
    assert data.detection.batch_size
    assert data.segmentation.shards != data.detection.shards
    assert _num_values("openseed_scenes") < 8_000_000
