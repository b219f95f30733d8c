"""What the segmentation losses of one step share: predictions, texts, draws, regions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xdecoder.losses.draws import UniformSource
from xdecoder.losses.mask import pad_masks
from xdecoder.losses.matching import pad_targets
from xdecoder.losses.points import PointSampling, sample_points
from xdecoder.outputs import DecoderOutput
from xdecoder.tasks.base import full_precision, keyed, last_predictions, stacked_at
from xdecoder.tasks.texts import EncodedTexts


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Masks of all images one after another, at the size of the canvas."""

    masks: Bool[Tensor, "m h w"]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, masks: Sequence[Bool[Tensor, "_m h w"]], canvas_hw: Sequence[int]) -> "Regions":
        """The masks of each image, padded to the canvas."""
        flat = pad_masks(torch.cat(list(masks)), (canvas_hw[0], canvas_hw[1]))
        return cls(masks=flat, counts=tuple(len(image) for image in masks))

    def at(self, points_xy01: Float[Tensor, "b p 2"]) -> Float[Tensor, "b m p"]:
        """The masks read at the points of their images."""
        image_index = torch.repeat_interleave(
            torch.arange(len(self.counts)), torch.tensor(self.counts)
        )
        read = sample_points(
            self.masks.unsqueeze(1).to(points_xy01.dtype),
            points_xy01[image_index.to(points_xy01.device)],
        )
        return pad_targets(read.squeeze(1), self.counts)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Predictions of a decoder run, and what their losses need.

    is_drawn_per_prediction: every prediction has draws of its own, from the last one back.
    complaints: of the matchings that were made.
    """

    output: DecoderOutput
    texts: EncodedTexts
    draws: UniformSource
    points: PointSampling
    is_drawn_per_prediction: bool
    divide: dict[str, Tensor]
    logit_scale: Float[Tensor, " 1"]
    scale: Float[Tensor, ""]
    complaints: list[str] = field(default_factory=list)

    @cached_property
    def mask_features(self) -> Float[Tensor, "b c h w"]:
        return full_precision(self.output.mask_features)

    def groups(self) -> Iterator[range]:
        """Predictions whose losses are computed together: all, or one after another."""
        count = len(self.output.layers)
        if not self.is_drawn_per_prediction:
            yield range(count)
            return
        for index in reversed(range(count)):
            yield range(index, index + 1)

    def last_of(self, predictions: range, num_layers: int) -> range:
        """Those of `predictions` that are among the last `num_layers` of the decoder."""
        last = last_predictions(len(self.output.layers), num_layers)
        return range(max(predictions.start, last.start), predictions.stop)

    def stacked(self, part: str, rows: slice, predictions: range) -> Tensor:
        """One part of some predictions, [L, B, rows, C], in full precision."""
        return stacked_at(self.output, part, rows, predictions)

    def keyed(
        self, term: str, values: Tensor, weight: float, predictions: range
    ) -> dict[str, Tensor]:
        """Weighted values of some predictions under their names."""
        return keyed("segmentation", term, values, weight, predictions.stop)

    def matching_points(self) -> tuple[Float[Tensor, "b p 2"], Float[Tensor, "b c p"]]:
        """Points xy in 0..1 that the masks of each image are matched at, and the features there.

        They are drawn once, or anew at every call if each prediction has draws of its own.
        """
        if self.is_drawn_per_prediction:
            return self._drawn_points()
        return self._shared_points

    @cached_property
    def _shared_points(self) -> tuple[Tensor, Tensor]:
        return self._drawn_points()

    def _drawn_points(self) -> tuple[Tensor, Tensor]:
        points = self.draws.uniform(len(self.mask_features), self.points.num_for_matching, 2)
        points = points.to(self.mask_features)
        return points, sample_points(self.mask_features.detach(), points)
