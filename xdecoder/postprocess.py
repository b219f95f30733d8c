"""Class probabilities and mask logits to maps, segments and instances, at any resolution.

A query's last class is background. All functions are pure; the thresholds are arguments because
they belong to a protocol, not to a model.
Source: MaskFormer.*_inference of facebookresearch/Mask2Former, which X-Decoder shares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

ResizeMode = Literal["bilinear", "bicubic_antialias"]
# elements of a temporary tensor: what is done to all masks at full resolution is done in parts
CHUNK_ELEMENTS = 1 << 25


@dataclass(frozen=True, kw_only=True)
class PanopticSegment:
    """One segment of a panoptic map; `id` is its value there, counted from 1."""

    id: int
    class_id: int
    is_thing: bool
    score: float
    area_px: int


class Panoptic(NamedTuple):
    """Segment ids per pixel (0 where there is none) and what they are."""

    ids: Int[Tensor, "h w"]
    segments: tuple[PanopticSegment, ...]


class Masks(Protocol):
    """Mask logits at one size: a tensor [Q, H, W], or something that makes each when asked."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def __getitem__(self, query: int, /) -> Tensor: ...


class Instances(NamedTuple):
    """Instances from the best to the worst; boxes end at the last pixel plus one."""

    scores: Float[Tensor, " n"]
    class_ids: Int[Tensor, " n"]
    masks: Bool[Tensor, "n h w"]
    boxes_xyxy_px: Float[Tensor, "n 4"]


def resize_masks(
    mask_logits: Float[Tensor, "q h4 w4"],
    *,
    canvas_hw: tuple[int, int],
    valid_hw: tuple[int, int],
    out_hw: tuple[int, int],
    mode: ResizeMode = "bilinear",
    canvas_mode: ResizeMode | None = None,
) -> Float[Tensor, "q h w"]:
    """Mask logits at a size: up to the padded input, without its padding, to `out_hw`.

    canvas_mode: of the first step, None for that of both.
    """
    largest = max(canvas_hw[0] * canvas_hw[1], out_hw[0] * out_hw[1], 1)
    resized = mask_logits.new_empty(len(mask_logits), *out_hw)
    step = max(1, CHUNK_ELEMENTS // largest)
    for start in range(0, len(mask_logits), step):
        part = _resize(mask_logits[start : start + step], canvas_hw, canvas_mode or mode)
        part = part[:, : valid_hw[0], : valid_hw[1]]
        resized[start : start + step] = _resize(part, out_hw, mode)
    return resized


def _resize(maps: Tensor, size_hw: tuple[int, int], mode: ResizeMode) -> Tensor:
    if tuple(maps.shape[1:]) == size_hw:
        return maps
    is_bicubic = mode == "bicubic_antialias"
    return F.interpolate(
        maps[None],
        size=size_hw,
        mode="bicubic" if is_bicubic else "bilinear",
        align_corners=False,
        antialias=is_bicubic,
    )[0]


def semantic(
    class_probs: Float[Tensor, "q k1"],
    mask_logits: Float[Tensor, "q h w"],
    *,
    keep_background: bool = False,
) -> Float[Tensor, "k h w"]:
    """How much each class speaks for each pixel: sum over queries of probability times mask."""
    probs = class_probs if keep_background else class_probs[:, :-1]
    height, width = mask_logits.shape[1:]
    scores = mask_logits.new_empty(probs.shape[1], height, width)
    step = max(1, CHUNK_ELEMENTS // max(1, len(mask_logits) * width))
    for top in range(0, height, step):
        rows = slice(top, top + step)
        scores[:, rows] = torch.einsum("qk,qhw->khw", probs, mask_logits[:, rows].sigmoid())
    return scores


def panoptic(
    class_probs: Float[Tensor, "q k1"],
    mask_logits: Masks,
    *,
    is_thing: Sequence[bool],
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
    keeps_faint_pixels: bool = False,
) -> Panoptic:
    """Segments that do not overlap; a pixel goes to the query with the largest score times mask.

    object_threshold: least class probability of a query; overlap_threshold: least share of a
    query's own mask that it wins. Parts of the same stuff class are one segment.
    keeps_faint_pixels: a segment has all pixels that its query wins, as in MaskFormer, also where
    its mask probability is below 0.5.
    """
    scores, class_ids = class_probs.max(1)
    kept = ((class_ids != class_probs.shape[1] - 1) & (scores > object_threshold)).nonzero()[:, 0]
    scores, class_ids = scores[kept], class_ids[kept]
    owner, is_inside, own_areas = _owners(scores, mask_logits, kept)
    won_areas = torch.bincount(owner.flatten() + 1, minlength=len(kept) + 1)[1:]
    owner = owner if keeps_faint_pixels else torch.where(is_inside, owner, -1)
    areas = torch.bincount(owner.flatten() + 1, minlength=len(kept) + 1)[1:]
    is_kept = (
        (areas > 0) & (own_areas > 0) & (won_areas / own_areas.clamp(min=1) >= overlap_threshold)
    )
    segment_of = torch.zeros(len(kept) + 1, dtype=torch.int32)
    segments: list[PanopticSegment] = []
    stuff: dict[int, int] = {}
    for index in is_kept.nonzero()[:, 0].tolist():
        class_id, area = int(class_ids[index]), int(areas[index])
        if class_id in stuff:
            place = stuff[class_id]
            segments[place] = _grown(segments[place], area, float(scores[index]))
        else:
            place = len(segments)
            segments.append(
                PanopticSegment(
                    id=place + 1,
                    class_id=class_id,
                    is_thing=is_thing[class_id],
                    score=float(scores[index]),
                    area_px=area,
                )
            )
            if not is_thing[class_id]:
                stuff[class_id] = place
        segment_of[index + 1] = place + 1
    return Panoptic(segment_of.to(owner.device)[owner + 1], tuple(segments))


def _grown(segment: PanopticSegment, area: int, score: float) -> PanopticSegment:
    return PanopticSegment(
        id=segment.id,
        class_id=segment.class_id,
        is_thing=segment.is_thing,
        score=max(segment.score, score),
        area_px=segment.area_px + area,
    )


def _owners(scores: Tensor, mask_logits: Masks, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Winner per pixel (-1 without queries), whether its mask has the pixel, and mask areas."""
    size_hw = tuple(mask_logits.shape[1:])
    best = torch.full(size_hw, -1.0, dtype=mask_logits.dtype, device=mask_logits.device)
    owner = torch.full(size_hw, -1, dtype=torch.long, device=mask_logits.device)
    is_inside = torch.zeros(size_hw, dtype=torch.bool, device=mask_logits.device)
    areas = torch.zeros(len(kept), dtype=torch.long, device=mask_logits.device)
    # one map at a time, so that the peak does not grow with the number of queries
    for index, query in enumerate(kept.tolist()):
        probs = mask_logits[query].sigmoid()
        has_pixel = probs >= 0.5
        areas[index] = has_pixel.sum()
        votes = scores[index] * probs
        is_better = votes > best
        best = torch.where(is_better, votes, best)
        owner = torch.where(is_better, index, owner)
        is_inside = torch.where(is_better, has_pixel, is_inside)
    return owner, is_inside, areas


def instances(
    class_probs: Float[Tensor, "q k1"],
    mask_logits: Masks,
    *,
    top_k: int = 100,
    is_thing: Sequence[bool] | None = None,
    minimum_score: float = 0.0,
) -> Instances:
    """The `top_k` most probable pairs of a query and a class, background apart.

    A score is the class probability times the mean mask probability inside the mask. With
    `is_thing`, pairs whose class is stuff are dropped after the choice, and pairs below
    `minimum_score` are dropped last.
    """
    probs = class_probs[:, :-1]
    num_classes = probs.shape[1]
    scores, pairs = probs.flatten().topk(min(top_k, probs.numel()))
    queries, class_ids = pairs // num_classes, pairs % num_classes
    if is_thing is not None:
        is_kept = torch.tensor(list(is_thing), device=class_ids.device)[class_ids]
        scores, queries, class_ids = scores[is_kept], queries[is_kept], class_ids[is_kept]
    cut = cut_masks(mask_logits, queries)
    scores = scores * cut.quality[cut.place]
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= minimum_score]
    masks = cut.regions[cut.place[order]]
    return Instances(scores[order], class_ids[order], masks, boxes_from_masks(masks))


class CutMasks(NamedTuple):
    """Regions of distinct queries, how sure each is of itself, and the place of each asked one."""

    regions: Bool[Tensor, "n h w"]
    quality: Float[Tensor, " n"]
    place: Int[Tensor, " m"]


def cut_masks(mask_logits: Masks, queries: Int[Tensor, " m"]) -> CutMasks:
    """The masks of some queries, each made once, however often its query is named."""
    queries, place = queries.unique(return_inverse=True)
    device = mask_logits.device
    regions = torch.zeros(len(queries), *mask_logits.shape[1:], dtype=torch.bool, device=device)
    quality = torch.zeros(len(queries), dtype=mask_logits.dtype, device=device)
    for row, query in enumerate(queries.tolist()):
        logits = mask_logits[query]
        regions[row] = logits > 0
        quality[row] = mask_quality(logits[None])[0]
    return CutMasks(regions, quality, place)


def mask_quality(mask_logits: Float[Tensor, "q h w"]) -> Float[Tensor, " q"]:
    """Mean mask probability inside each mask, 0 where it is empty."""
    quality = mask_logits.new_empty(len(mask_logits))
    for query, logits in enumerate(mask_logits):
        inside = logits > 0
        quality[query] = (logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6)
    return quality


def boxes_from_masks(masks: Shaped[Tensor, "n h w"]) -> Float[Tensor, "n 4"]:
    """The smallest box around each mask, its end one past the last pixel; zeros if empty."""
    boxes = torch.zeros(len(masks), 4, device=masks.device)
    for axis, dim in ((0, 1), (1, 2)):
        # which columns (axis x) or rows (axis y) hold a pixel
        is_used = masks.bool().any(dim=dim)
        positions = torch.arange(is_used.shape[1], device=masks.device)
        has_any = is_used.any(1)
        first = torch.where(is_used, positions, is_used.shape[1]).amin(1)
        last = torch.where(is_used, positions, -1).amax(1) + 1
        boxes[:, axis] = torch.where(has_any, first, 0).float()
        boxes[:, axis + 2] = torch.where(has_any, last, 0).float()
    return boxes
