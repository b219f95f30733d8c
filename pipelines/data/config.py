"""What a run trains on: which shards, how much of each task in a step, how it is augmented."""

from dataclasses import dataclass, field

from pipelines.errors import ConfigError

SizeHW = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far a sample may be changed; every draw is seeded by (seed, epoch, sample key).

    flip_prob: mirror image and masks, and swap left with right in the texts.
    scale_range: large-scale jitter, relative to the scale at which the image just fits;
        (1, 1) keeps the image whole.
    colour_strength: largest relative change of brightness, contrast and saturation; 0 where
        colour words matter.
    """

    flip_prob: float = 0.5
    scale_range: tuple[float, float] = (1.0, 1.0)
    colour_strength: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.flip_prob <= 1.0:
            raise ConfigError(f"AugmentConfig: flip_prob must be in [0, 1]; got {self.flip_prob}.")
        low, high = self.scale_range
        if not 0.0 < low <= high:
            raise ConfigError(
                f"AugmentConfig: scale_range must be 0 < low <= high; got {self.scale_range}."
            )
        if not 0.0 <= self.colour_strength < 1.0:
            raise ConfigError(
                f"AugmentConfig: colour_strength must be in [0, 1); got {self.colour_strength}."
            )


@dataclass(frozen=True, kw_only=True)
class SegmentationDataConfig:
    """Images with panoptic segments and phrases.

    shards: folders that `pipelines.prepare` wrote; a step takes its batch from one of them.
    weights: relative frequency of each folder, empty = by number of samples.
    size_hw: pixels of the padded crop. batch_size: images in a step, all ranks together; 0 = none.
    max_phrases: phrases per image at most, drawn without replacement.
    """

    shards: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    size_hw: SizeHW = (96, 128)
    batch_size: int = 8
    max_phrases: int = 4
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _check_task("segmentation", self.shards, self.weights, self.size_hw, self.batch_size)
        if self.max_phrases < 0:
            raise ConfigError(
                f"data.segmentation: max_phrases must not be negative; got {self.max_phrases}."
            )


@dataclass(frozen=True, kw_only=True)
class ImageTextDataConfig:
    """Images with one caption each, drawn from those that an image has.

    The fields mean what they mean in `SegmentationDataConfig`.
    """

    shards: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    size_hw: SizeHW = (96, 128)
    batch_size: int = 8
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _check_task("image_text", self.shards, self.weights, self.size_hw, self.batch_size)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The mixture of one step: a segmentation batch and an image-text batch, sizes over all ranks.

    split: which split of the shards. num_workers: loader processes per rank, 0 = in the training
    process. prefetch: steps that each worker prepares ahead. shuffle_window: shards whose samples
    are mixed with each other (across windows the order of shards is shuffled).
    """

    segmentation: SegmentationDataConfig = field(default_factory=SegmentationDataConfig)
    image_text: ImageTextDataConfig = field(default_factory=ImageTextDataConfig)
    split: str = "train"
    num_workers: int = 0
    prefetch: int = 2
    shuffle_window: int = 8

    def __post_init__(self) -> None:
        if self.segmentation.batch_size == 0 and self.image_text.batch_size == 0:
            raise ConfigError(
                "data: at least one of segmentation.batch_size and image_text.batch_size "
                "must be positive; got 0 and 0."
            )
        for name, low in (("num_workers", 0), ("prefetch", 1), ("shuffle_window", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"data.{name} must be >= {low}; got {getattr(self, name)}.")


def _check_task(
    task: str,
    shards: tuple[str, ...],
    weights: tuple[float, ...],
    size_hw: SizeHW,
    batch_size: int,
) -> None:
    if weights and len(weights) != len(shards):
        raise ConfigError(
            f"data.{task}: weights must be empty or one per shard folder ({len(shards)}); "
            f"got {len(weights)}."
        )
    if any(weight <= 0 for weight in weights):
        raise ConfigError(f"data.{task}: weights must be positive; got {weights}.")
    if min(size_hw) < 1:
        raise ConfigError(f"data.{task}: size_hw must be two positive numbers; got {size_hw}.")
    if batch_size < 0:
        raise ConfigError(f"data.{task}: batch_size must be >= 0; got {batch_size}.")
