"""How good masks are that a trained OpenSeeD gives to boxes, next to those it never saw."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from pipelines.data.coco import CocoFolder, decode_mask
from xdecoder import MasksOfBoxes, OpenSeeD
from xdecoder.openseed.boxes import cxcywh
from xdecoder.openseed.conditioned import assisted, inside_boxes
from xdecoder.openseed.config import AssistanceConfig
from xdecoder.openseed.questions import name_vectors
from xdecoder.openseed.targets import BoxedTargets

NUM_FOR_ASSISTANCE = 100


class Things(NamedTuple):
    """A picture and what is in it; boxes in pixels, ends past the last one."""

    image: np.ndarray
    names: tuple[str, ...]
    boxes_xyxy_px: tuple[tuple[float, float, float, float], ...]
    masks: Bool[Tensor, "n h w"]


def given_boxes(run: Path, scenes: Path) -> dict[str, float]:
    """Mean IoU in percent, by name, of the true masks and those decoded from the true boxes.

    Masks are cut to their boxes.
    """
    model = OpenSeeD.from_pretrained(run)
    found: dict[str, list[float]] = {}
    for things in unseen(scenes):
        question = MasksOfBoxes(boxes_xyxy_px=things.boxes_xyxy_px, names=things.names)
        masks = model.predict(things.image, question).masks
        for name, value in zip(things.names, overlaps(masks, things.masks), strict=True):
            found.setdefault(name, []).append(value)
    return {name: 100 * float(np.mean(values)) for name, values in found.items()}


def whole_boxes(scenes: Path) -> dict[str, float]:
    """As `given_boxes`, of the boxes themselves: what a model reaches that only fills them."""
    found: dict[str, list[float]] = {}
    for things in unseen(scenes):
        filled = inside_boxes(torch.tensor(things.boxes_xyxy_px), things.image.shape[:2])
        for name, value in zip(things.names, overlaps(filled, things.masks), strict=True):
            found.setdefault(name, []).append(value)
    return {name: 100 * float(np.mean(values)) for name, values in found.items()}


def assistance(
    run: Path, scenes: Path, names: Sequence[str], boxes_only: Sequence[str]
) -> list[dict[str, Any]]:
    """What assistance would do after each checkpoint: the share of boxes that get a mask, and IoU.

    IoU in percent of these masks, and of all that were decoded, with the true ones.
    """
    pictures = list(unseen(scenes))[:NUM_FOR_ASSISTANCE]
    rows = []
    for folder in sorted((run / "checkpoints").glob("step_*")):
        # as training decodes them: by the weights themselves, not by their average
        model = OpenSeeD.from_pretrained(folder, ema=False)
        results = [_assisted(model, things, names) for things in pictures]
        is_kept = torch.cat([kept for kept, _ in results])
        overlap = torch.cat([values for _, values in results])
        labels = [name for things in pictures for name in things.names]
        row: dict[str, Any] = {"step": int(folder.name.removeprefix("step_"))}
        for group, is_in_group in (("boxes_only", True), ("with_masks", False)):
            rows_of_group = torch.tensor([(name in boxes_only) == is_in_group for name in labels])
            kept = rows_of_group & is_kept
            row[group] = {
                "kept": round(100 * float(kept.sum() / rows_of_group.sum()), 1),
                "iou_of_kept": round(100 * float(overlap[kept].mean()), 1) if kept.any() else None,
                "iou_of_all": round(100 * float(overlap[rows_of_group].mean()), 1),
            }
        rows.append(row)
    return rows


@torch.no_grad()
def _assisted(model: OpenSeeD, things: Things, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Which boxes of a picture get a mask in training, and the IoU of every decoded mask."""
    pixels = torch.from_numpy(things.image.copy()).permute(2, 0, 1)[None].float()
    pyramid = model.encode_images(pixels)
    height, width = things.masks.shape[1:]
    boxes = torch.tensor(things.boxes_xyxy_px) / torch.tensor([width, height, width, height])
    targets = BoxedTargets(
        counts=(len(things.names),),
        class_ids=torch.tensor([names.index(name) for name in things.names]),
        boxes_cxcywh01=cxcywh(boxes),
        is_thing=torch.ones(len(things.names), dtype=torch.bool),
    )
    vectors = name_vectors(model, names)
    found = assisted(model, pyramid, vectors, targets, AssistanceConfig(), (height, width))
    assert found.masks is not None
    assert found.has_mask is not None
    return found.has_mask, torch.tensor(overlaps(found.masks, things.masks))


def unseen(scenes: Path) -> Iterator[Things]:
    """The scenes of the split that nobody trains on."""
    split = CocoFolder(scenes, with_refs=False).split("val")
    name_of = {category.id: category.name for category in split.categories}
    for record in split.records:
        instances = record.instances or ()
        boxes = [each.bbox_xywh_px for each in instances]
        yield Things(
            image=np.asarray(Image.open(record.image_path).convert("RGB")),
            names=tuple(name_of[each.category_id] for each in instances),
            boxes_xyxy_px=tuple((x, y, x + w, y + h) for x, y, w, h in boxes),
            masks=torch.from_numpy(
                np.stack([decode_mask(each.segmentation, record.size_hw) for each in instances])
            ),
        )


def overlaps(found: Bool[Tensor, "n h w"], true: Bool[Tensor, "n h w"]) -> list[float]:
    """IoU of each mask with its own true one."""
    shared = (found & true).flatten(1).sum(1)
    union = (found | true).flatten(1).sum(1)
    return (shared / union.clamp(min=1)).tolist()
