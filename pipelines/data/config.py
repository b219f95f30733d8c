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
    colour_strength: largest relative change of brightness, contrast and saturation.
    hue_degrees: largest turn of all hues; keep it 0 where colour words matter.
    """

    flip_prob: float = 0.5
    scale_range: tuple[float, float] = (1.0, 1.0)
    colour_strength: float = 0.0
    hue_degrees: float = 0.0

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
        if not 0.0 <= self.hue_degrees <= 180.0:
            raise ConfigError(
                f"AugmentConfig: hue_degrees must be in [0, 180]; got {self.hue_degrees}."
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
class DetectionDataConfig:
    """Images with boxes of things; masks, where shards have them, are not read.

    The fields mean what they mean in `SegmentationDataConfig`.
    """

    shards: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    size_hw: SizeHW = (96, 128)
    batch_size: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _check_task("detection", self.shards, self.weights, self.size_hw, self.batch_size)


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


TaskDataConfig = SegmentationDataConfig | DetectionDataConfig | ImageTextDataConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The mixture of one step: a batch of each task, sizes over all ranks, 0 = without the task.

    split: which split of the shards. num_workers: loader processes per rank, 0 = in the training
    process. prefetch: steps that each worker prepares ahead. pin_memory: copy to a GPU from memory
    that it can read by itself. shuffle_window: shards whose samples are mixed with each other
    (across windows the order of shards is shuffled).
    max_damaged, max_damaged_share: samples that cannot be used are replaced by others, counted and
    logged; the run ends when they are more than this number and more than this share of all drawn.
    cache_dir, cache_gib: where remote shards (protocol://...) are kept on each node, and how much
    of them; an empty folder is $XDEC_DATA_CACHE, or xdecoder-shards in the temporary folder.
    root: a data set in its owner's layout, which `pipelines.finetune` packs and scores by itself.
    protected: evaluation sets whose images the shards must have left out, as `prepare --protect`
    names them; shards that were prepared without one of them are refused.
    """

    segmentation: SegmentationDataConfig = field(default_factory=SegmentationDataConfig)
    detection: DetectionDataConfig = field(default_factory=DetectionDataConfig)
    image_text: ImageTextDataConfig = field(default_factory=ImageTextDataConfig)
    root: str = ""
    split: str = "train"
    num_workers: int = 0
    prefetch: int = 2
    pin_memory: bool = True
    shuffle_window: int = 8
    max_damaged: int = 16
    max_damaged_share: float = 0.001
    cache_dir: str = ""
    cache_gib: float = 100.0
    protected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(part.batch_size for part in self.parts().values()):
            raise ConfigError(
                "data: at least one of segmentation.batch_size, detection.batch_size and "
                "image_text.batch_size must be positive; got 0, 0 and 0."
            )
        lowest = {"num_workers": 0, "prefetch": 1, "shuffle_window": 1, "max_damaged": 0}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ConfigError(f"data.{name} must be >= {low}; got {getattr(self, name)}.")
        if not 0.0 <= self.max_damaged_share <= 1.0:
            raise ConfigError(
                f"data.max_damaged_share must be in [0, 1]; got {self.max_damaged_share}."
            )
        if self.cache_gib <= 0.0:
            raise ConfigError(f"data.cache_gib must be positive; got {self.cache_gib}.")

    def parts(self) -> dict[str, TaskDataConfig]:
        """What each task reads, in the order of their batches; also tasks that have none."""
        return {
            "segmentation": self.segmentation,
            "detection": self.detection,
            "image_text": self.image_text,
        }


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
