import pytest

from pipelines.data.config import (
    AugmentConfig,
    DataConfig,
    DetectionDataConfig,
    ImageTextDataConfig,
    SegmentationDataConfig,
)
from pipelines.errors import ConfigError


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AugmentConfig(flip_prob=1.5), r"flip_prob must be in \[0, 1\]; got 1.5"),
        (lambda: AugmentConfig(scale_range=(2.0, 0.5)), r"scale_range must be 0 < low <= high"),
        (lambda: AugmentConfig(colour_strength=1.0), r"colour_strength must be in \[0, 1\)"),
        (
            lambda: SegmentationDataConfig(shards=("a",), weights=(1.0, 2.0)),
            r"data.segmentation: weights must be empty or one per shard folder \(1\); got 2",
        ),
        (lambda: SegmentationDataConfig(max_phrases=-1), "max_phrases must not be negative"),
        (
            lambda: ImageTextDataConfig(shards=("a",), weights=(0.0,)),
            "data.image_text: weights must be positive",
        ),
        (
            lambda: DetectionDataConfig(shards=("a", "b"), weights=(1.0,)),
            r"data.detection: weights must be empty or one per shard folder \(2\); got 1",
        ),
        (lambda: DetectionDataConfig(batch_size=-2), "data.detection: batch_size must be >= 0"),
        (lambda: ImageTextDataConfig(size_hw=(0, 5)), "size_hw must be two positive numbers"),
        (lambda: ImageTextDataConfig(batch_size=-1), "batch_size must be >= 0; got -1"),
        (lambda: DataConfig(num_workers=-1), "data.num_workers must be >= 0; got -1"),
        (lambda: DataConfig(prefetch=0), "data.prefetch must be >= 1; got 0"),
        (lambda: DataConfig(shuffle_window=0), "data.shuffle_window must be >= 1; got 0"),
        (lambda: DataConfig(max_damaged=-1), "data.max_damaged must be >= 0; got -1"),
        (
            lambda: DataConfig(max_damaged_share=2.0),
            r"max_damaged_share must be in \[0, 1\]; got 2",
        ),
        (lambda: DataConfig(cache_gib=0.0), "data.cache_gib must be positive; got 0"),
        (lambda: AugmentConfig(hue_degrees=-3.0), r"hue_degrees must be in \[0, 180\]; got -3"),
        (
            lambda: DataConfig(
                segmentation=SegmentationDataConfig(batch_size=0),
                image_text=ImageTextDataConfig(batch_size=0),
            ),
            "at least one of segmentation.batch_size, detection.batch_size and image_text",
        ),
    ],
)
def test_impossible_values_say_what_is_possible(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_detection_data_alone_make_a_step() -> None:
    data = DataConfig(
        segmentation=SegmentationDataConfig(batch_size=0),
        detection=DetectionDataConfig(shards=("a",), batch_size=2),
        image_text=ImageTextDataConfig(batch_size=0),
    )
    assert data.detection.batch_size == 2
    assert DataConfig().detection.batch_size == 0
