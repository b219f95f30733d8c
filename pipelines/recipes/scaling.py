"""A published recipe on other hardware: learning rate and length for another batch size."""

from dataclasses import replace

from pipelines.config import RunConfig
from pipelines.errors import ConfigError


def scaled_to_batch(config: RunConfig, batch_size: int) -> RunConfig:
    """The run with `batch_size` images per step, seen as often as before.

    The learning rate changes in proportion to the batch and the number of steps against it, which
    keeps what each image contributes; milestones are shares of the run and stay. The warm-up
    covers the same images. The proportion holds for a few halvings or doublings; beyond that, try.

    Raises:
        ConfigError: a batch size below 1, or a recipe without segmentation batches.
    Source: arXiv 1706.02677 section 2.1.
    """
    published = config.data.segmentation.batch_size
    if batch_size < 1 or published < 1:
        raise ConfigError(
            "scaled_to_batch: both batch sizes must be at least 1; "
            f"got {published} in the recipe and {batch_size} asked for."
        )
    factor = batch_size / published
    steps = max(1, round(config.steps / factor))
    warmup = min(round(config.schedule.warmup_steps / factor), steps - 1)
    return replace(
        config,
        steps=steps,
        data=replace(
            config.data, segmentation=replace(config.data.segmentation, batch_size=batch_size)
        ),
        optimizer=replace(config.optimizer, learning_rate=config.optimizer.learning_rate * factor),
        schedule=replace(config.schedule, warmup_steps=warmup),
    )
