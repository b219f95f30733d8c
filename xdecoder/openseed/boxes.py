"""Boxes as centre and size in 0..1 of their image, their overlap, and their positions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Source: IDEA-Research/OpenSeeD, utils/misc.py (inverse_sigmoid) and utils/box_ops.py
LOGIT_EPS = 1e-5
GIOU_EPS = 1e-6


def cxcywh(boxes_xyxy: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Centre and size of boxes given by their corners, in the same unit."""
    first, last = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(first + last) / 2, last - first], -1)


def xyxy(boxes_cxcywh: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Corners of boxes given by centre and size, in the same unit."""
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def logit(x01: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The inverse of the sigmoid, finite also at 0 and 1."""
    x01 = x01.clamp(0, 1)
    return (x01.clamp(min=LOGIT_EPS) / (1 - x01).clamp(min=LOGIT_EPS)).log()


def intersection_over_union(
    first_xyxy: Float[Tensor, "*#n 4"], second_xyxy: Float[Tensor, "*#n 4"]
) -> Float[Tensor, "*n"]:
    """Shared area over the area of both; 0 where both are empty."""
    shared, union = _shared_and_union(first_xyxy, second_xyxy)
    return shared / (union + GIOU_EPS)


def generalised_iou(
    first_xyxy: Float[Tensor, "*#n 4"], second_xyxy: Float[Tensor, "*#n 4"]
) -> Float[Tensor, "*n"]:
    """IoU less the share of the enclosing box that neither fills; in -1..1."""
    shared, union = _shared_and_union(first_xyxy, second_xyxy)
    low = torch.minimum(first_xyxy[..., :2], second_xyxy[..., :2])
    high = torch.maximum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    around = (high - low).clamp(min=0).prod(-1)
    return shared / (union + GIOU_EPS) - (around - union) / (around + GIOU_EPS)


def _shared_and_union(first_xyxy: Tensor, second_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (first_xyxy, second_xyxy)]
    low = torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    high = torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    return shared, areas[0] + areas[1] - shared


def sine_boxes(boxes_cxcywh01: Float[Tensor, "*n 4"], dim: int) -> Float[Tensor, "*n twice"]:
    """Sine and cosine positions [..., 2 * dim] of y, x, width and height, half of `dim` each.

    Source: IDEA-Research/DINO, gen_sineembed_for_position.
    """
    half = dim // 2
    index = torch.arange(half, device=boxes_cxcywh01.device, dtype=boxes_cxcywh01.dtype)
    wavelength = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)  # [C/2]
    parts_yxwh = boxes_cxcywh01[..., [1, 0, 2, 3]]
    angle = (parts_yxwh * (2 * math.pi)).unsqueeze(-1) / wavelength  # [..., 4, C/2]
    # even channels sine, odd channels cosine
    pair = torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1)
    return pair.flatten(-3)  # [..., 2C]
