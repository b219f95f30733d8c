"""Two small scenes as a segmentation batch and an image-text batch."""

import pytest
import torch

from xdecoder.batch import (
    ImageTextBatch,
    PhraseTargets,
    SegmentationBatch,
    SegmentTargets,
    Vocabulary,
)
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.points import PointSampling
from xdecoder.tasks import LossConfig

# 48x80 pixels are padded to 64x96 inside the model
SIZE_HW = (48, 80)


class SameForEveryRow(UniformSource):
    """Draws that do not depend on how many rows are asked for."""

    def uniform(self, *shape):
        generator = torch.Generator().manual_seed(sum(shape[1:]))
        return torch.rand((1, *shape[1:]), generator=generator).expand(shape).clone()


def scene(index):
    """Sky above ground, a ball and a box, elsewhere in every scene."""
    y, x = torch.meshgrid(torch.arange(SIZE_HW[0]), torch.arange(SIZE_HW[1]), indexing="ij")
    ball = (x - 20 - 40 * index) ** 2 + (y - 30 + 8 * index) ** 2 < 81
    box = (x > 55 - 45 * index) & (x < 70 - 45 * index) & (y > 6) & (y < 18)
    sky = y < 24
    image = torch.full((3, *SIZE_HW), 40.0)
    image[2, sky] = 200
    image[:, box] = torch.tensor([220.0, 220.0, 30.0])[:, None]
    image[:, ball] = torch.tensor([220.0, 30.0, 30.0] if index == 0 else [30.0, 220.0, 30.0])[
        :, None
    ]
    ball_only, box_only = ball, box & ~ball
    ground = ~sky & ~ball & ~box
    return image, torch.stack([sky & ~ball & ~box, ground, ball_only, box_only])


def segmentation_batch(indices=(0, 1)):
    scenes = [scene(index) for index in indices]
    colours = ["red", "green"]
    return SegmentationBatch(
        keys=tuple(f"scene{index}" for index in indices),
        images=torch.stack([image for image, _ in scenes]),
        valid_sizes_hw=(SIZE_HW,) * len(scenes),
        vocabulary=Vocabulary(
            names=("sky", "ground", "ball", "box"), is_thing=(False, False, True, True)
        ),
        segments=tuple(
            SegmentTargets(masks=masks, class_ids=torch.arange(4)) for _, masks in scenes
        ),
        phrases=tuple(
            PhraseTargets(phrases=(f"a {colours[index]} ball", "a box"), masks=masks[2:])
            for index, (_, masks) in zip(indices, scenes, strict=True)
        ),
    )


def image_text_batch(indices=(0, 1)):
    captions = ["a red ball", "a box and a green ball"]
    return ImageTextBatch(
        keys=tuple(f"scene{index}" for index in indices),
        images=torch.stack([scene(index)[0] for index in indices]),
        valid_sizes_hw=(SIZE_HW,) * len(indices),
        captions=tuple(captions[index] for index in indices),
    )


@pytest.fixture
def batches():
    return segmentation_batch(), image_text_batch()


@pytest.fixture
def loss_config():
    return LossConfig(points=PointSampling(num_points=60), templates=("{}.", "a photo of a {}."))


@pytest.fixture
def same_draws():
    return SameForEveryRow()


@pytest.fixture
def halves():
    """The two batches cut into one scene each."""
    return [(segmentation_batch((index,)), image_text_batch((index,))) for index in (0, 1)]
