import pytest
import torch

from xdecoder.batch import (
    BoxTargets,
    DetectionBatch,
    PhraseTargets,
    SegmentationBatch,
    SegmentTargets,
    Vocabulary,
)
from xdecoder.config import PixelDecoderConfig, TextConfig
from xdecoder.mask_former.config import SwinConfig
from xdecoder.openseed.build import build_openseed
from xdecoder.openseed.config import BoxDecoderConfig, OpenSeeDConfig

_VOCABULARY = Vocabulary(names=("cat", "dog", "sky"), is_thing=(True, True, False))


def tiny_config(**changes):
    """A model whose parts have different widths."""
    decoder = {"num_layers": 2, "num_heads": 4, "ffn_dim": 72, "num_queries": 12}
    decoder |= {"num_background": 5} | changes
    return OpenSeeDConfig(
        dim=64,
        mask_dim=32,
        text_dim=48,
        shared_dim=40,
        backbone=SwinConfig(
            dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window=4, drop_path=0.0
        ),
        pixel_decoder=PixelDecoderConfig(
            num_layers=1, num_heads=4, ffn_dim=56, is_finest_first=True
        ),
        decoder=BoxDecoderConfig(**decoder),
        text=TextConfig(num_layers=1, num_heads=4, context_length=16, num_merges=300),
    )


@pytest.fixture
def tiny_model():
    torch.manual_seed(3)
    return build_openseed(tiny_config())


@pytest.fixture
def images():
    return torch.rand(2, 3, 90, 120, generator=torch.Generator().manual_seed(1)) * 255


@pytest.fixture
def segmentation_batch(images):
    masks = torch.zeros(3, 90, 120, dtype=torch.bool)
    masks[0, 10:40, 20:60] = True
    masks[1, 50:80, 60:100] = True
    masks[2, :10] = True
    none = PhraseTargets(phrases=(), masks=masks[:0])
    return SegmentationBatch(
        keys=("a", "b"),
        images=images,
        valid_sizes_hw=((90, 120), (80, 100)),
        vocabulary=_VOCABULARY,
        segments=(
            SegmentTargets(masks=masks, class_ids=torch.tensor([0, 1, 2])),
            SegmentTargets(masks=masks[1:2], class_ids=torch.tensor([1])),
        ),
        phrases=(none, none),
    )


@pytest.fixture
def detection_batch(images):
    return DetectionBatch(
        keys=("c", "d"),
        images=images,
        valid_sizes_hw=((90, 120), (80, 100)),
        vocabulary=_VOCABULARY,
        boxes=(
            BoxTargets(
                boxes_xyxy_px=torch.tensor([[20.0, 10, 60, 40], [5, 50, 90, 88]]),
                class_ids=torch.tensor([0, 1]),
            ),
            BoxTargets(boxes_xyxy_px=torch.zeros(0, 4), class_ids=torch.zeros(0, dtype=torch.long)),
        ),
    )
