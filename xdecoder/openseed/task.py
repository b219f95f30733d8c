"""Training of OpenSeeD: images with masks, images with boxes, or both in one step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xdecoder.batch import DetectionBatch, SegmentationBatch
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.mask import pad_masks
from xdecoder.losses.matching import usable
from xdecoder.losses.world import World
from xdecoder.openseed.boxes import cxcywh
from xdecoder.openseed.conditioned import assisted
from xdecoder.openseed.config import BoxLossConfig
from xdecoder.openseed.criterion import Named, box_losses
from xdecoder.openseed.denoising import Conditions, disturbed
from xdecoder.openseed.model import OpenSeeD
from xdecoder.openseed.targets import BoxedTargets
from xdecoder.pixel_decoder import Pyramid
from xdecoder.postprocess import boxes_from_masks
from xdecoder.tasks.base import Counts, divisors, loss_key, without_autocast
from xdecoder.tasks.texts import draw_class_prompts
from xdecoder.text.prompts import sentence_embeddings

_TERMS = (
    ("label", "label"),
    ("box_l1", "box"),
    ("box_giou", "giou"),
    ("mask_bce", "mask"),
    ("mask_dice", "dice"),
)


@dataclass(frozen=True, kw_only=True)
class _BoxTask:
    """What both tasks share: names, queries, disturbed targets, and terms of every prediction."""

    config: BoxLossConfig
    templates: tuple[str, ...]
    world: World
    name: ClassVar[str]

    def _terms(
        self,
        model: OpenSeeD,
        batch: SegmentationBatch | DetectionBatch,
        pyramid: Pyramid,
        targets: BoxedTargets,
        draws: UniformSource,
        counts: Counts,
    ) -> dict[str, Tensor]:
        names = self._names(model, batch, draws)
        is_boxes_only = isinstance(batch, DetectionBatch)
        if is_boxes_only and self.config.assistance.is_on:
            canvas_hw = _canvas_hw(pyramid)
            targets = assisted(model, pyramid, names, targets, self.config.assistance, canvas_hw)
        ids, boxes = (
            targets.per_image(rows) for rows in (targets.class_ids, targets.boxes_cxcywh01)
        )
        conditions = disturbed(ids, boxes, draws, self.config.denoising)
        output = model.decode(pyramid, names, conditions=conditions)
        if is_boxes_only:
            # boxes say nothing of stuff, so nothing is asked of the learned queries
            objects = slice(0, output.num_foreground)
            output = replace(output, layers=tuple(each.rows(objects) for each in output.layers))
        has_split = self.config.splits_stuff and model.decoder.num_background > 0
        with without_autocast(batch.images.device):
            divide = divisors(counts, self.world, batch.images.device)[f"{self.name}/segments"]
            found = box_losses(
                output,
                targets,
                draws,
                self.config,
                conditions=conditions,
                num_thing_queries=output.num_foreground if has_split else None,
            )
            terms, complaints = {}, []
            for named in found:
                complaints.append(named.complaint)
                for key, value in self._weighted(named, model, conditions):
                    terms[key] = value / divide
            return usable(terms, complaints)

    def _weighted(
        self, named: Named, model: OpenSeeD, conditions: Conditions | None
    ) -> Iterator[tuple[str, Tensor]]:
        """Weighted sums of one prediction under their keys, per group of disturbed targets."""
        base, _, is_disturbed = named.name.partition("/")
        num_groups = conditions.num_groups if conditions and is_disturbed else 1
        suffix = "_selected" if base == "selected" else "_dn" * bool(is_disturbed)
        for term, part in _TERMS:
            value = getattr(named.terms, part)
            if value is not None:
                key = loss_key(self.name, term + suffix, _layer(base, model))
                yield key, getattr(self.config, part) * value / num_groups

    def _names(
        self, model: OpenSeeD, batch: SegmentationBatch | DetectionBatch, draws: UniformSource
    ) -> Float[Tensor, "k d"]:
        """Unit vectors of the batch's names, each in a drawn template."""
        *prompts, _ = draw_class_prompts(batch.vocabulary.names, self.templates, draws)
        return sentence_embeddings(model, prompts)


@dataclass(frozen=True, kw_only=True)
class BoxedSegmentationTask(_BoxTask):
    """Queries find segments, their boxes and their names."""

    name: ClassVar[str] = "segmentation"

    def counts(self, model: OpenSeeD, batch: SegmentationBatch) -> dict[str, float]:
        return {"segmentation/segments": float(sum(len(s.class_ids) for s in batch.segments))}

    def losses(
        self,
        model: OpenSeeD,
        batch: SegmentationBatch,
        draws: UniformSource,
        counts: Counts | None = None,
    ) -> dict[str, Tensor]:
        """Weighted terms under `loss_key`."""
        counts = counts or self.counts(model, batch)
        pyramid = model.encode_images(batch.images, batch.valid_sizes_hw)
        targets = _segment_targets(batch, _canvas_hw(pyramid))
        return self._terms(model, batch, pyramid, targets, draws, counts)


@dataclass(frozen=True, kw_only=True)
class DetectionTask(_BoxTask):
    """Queries find boxes and their names; masks come from the model itself, if from anywhere."""

    name: ClassVar[str] = "detection"

    def counts(self, model: OpenSeeD, batch: DetectionBatch) -> dict[str, float]:
        return {"detection/segments": float(sum(len(b.class_ids) for b in batch.boxes))}

    def losses(
        self,
        model: OpenSeeD,
        batch: DetectionBatch,
        draws: UniformSource,
        counts: Counts | None = None,
    ) -> dict[str, Tensor]:
        """Weighted terms under `loss_key`."""
        counts = counts or self.counts(model, batch)
        pyramid = model.encode_images(batch.images, batch.valid_sizes_hw)
        targets = _box_targets(batch, _canvas_hw(pyramid))
        return self._terms(model, batch, pyramid, targets, draws, counts)


def _layer(prediction: str, model: OpenSeeD) -> int:
    """The layer after which a prediction is made; 0 is before the layers."""
    if prediction == "selected":
        return 0
    if prediction == "final":
        return len(model.decoder.layers)
    return int(prediction.removeprefix("aux"))


def _canvas_hw(pyramid: Pyramid) -> tuple[int, int]:
    height, width = pyramid.mask_features.shape[2:]
    return 4 * height, 4 * width


def _segment_targets(batch: SegmentationBatch, canvas_hw: tuple[int, int]) -> BoxedTargets:
    """Segments with the boxes of their masks; segments that a crop emptied are left out."""
    kept = [segments.masks.flatten(1).any(1) for segments in batch.segments]
    masks = [segments.masks[rows] for segments, rows in zip(batch.segments, kept, strict=True)]
    class_ids = torch.cat(
        [segments.class_ids[rows] for segments, rows in zip(batch.segments, kept, strict=True)]
    )
    padded = pad_masks(torch.cat(masks), canvas_hw)
    return BoxedTargets(
        counts=tuple(len(each) for each in masks),
        class_ids=class_ids,
        boxes_cxcywh01=_shares(boxes_from_masks(padded), canvas_hw),
        is_thing=_is_thing(batch.vocabulary.is_thing, class_ids),
        masks=padded,
    )


def _box_targets(batch: DetectionBatch, canvas_hw: tuple[int, int]) -> BoxedTargets:
    class_ids = torch.cat([boxes.class_ids for boxes in batch.boxes])
    boxes_px = torch.cat([boxes.boxes_xyxy_px for boxes in batch.boxes])
    return BoxedTargets(
        counts=tuple(len(boxes.class_ids) for boxes in batch.boxes),
        class_ids=class_ids,
        boxes_cxcywh01=_shares(boxes_px, canvas_hw),
        is_thing=torch.ones_like(class_ids, dtype=torch.bool),
    )


def _shares(boxes_xyxy_px: Tensor, canvas_hw: tuple[int, int]) -> Float[Tensor, "m 4"]:
    """Boxes as centre and size in shares of the padded image, as predictions are."""
    height, width = canvas_hw
    size_px = boxes_xyxy_px.new_tensor([width, height, width, height])
    return cxcywh(boxes_xyxy_px / size_px)


def _is_thing(of_names: Sequence[bool], class_ids: Tensor) -> Bool[Tensor, " m"]:
    return torch.tensor(list(of_names), device=class_ids.device)[class_ids]
