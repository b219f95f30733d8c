"""Recipes on other hardware."""

from dataclasses import replace

import pytest

from pipelines.errors import ConfigError
from pipelines.recipes.scaling import scaled_to_batch
from pipelines.recipes.scenes import scenes


def test_half_the_batch_has_half_the_rate_and_twice_the_steps():
    base = scenes()
    half = scaled_to_batch(base, base.data.segmentation.batch_size // 2)
    assert half.optimizer.learning_rate == pytest.approx(base.optimizer.learning_rate / 2)
    assert half.steps == 2 * base.steps
    assert half.schedule.warmup_steps == 2 * base.schedule.warmup_steps
    assert half.schedule.milestones == base.schedule.milestones
    assert replace(half.data.segmentation, batch_size=8) == base.data.segmentation


def test_the_published_batch_changes_nothing():
    assert scaled_to_batch(scenes(), scenes().data.segmentation.batch_size) == scenes()


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="got 8 in the recipe and 0 asked for"):
        scaled_to_batch(scenes(), 0)
