"""The problems that deformable attention is timed on, and their inputs."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_HEADS, NUM_POINTS = 8, 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One benchmark problem; queries are the pixels themselves where `num_queries` is None."""

    name: str
    level_sizes_hw: tuple[tuple[int, int], ...]
    num_images: int = 1
    head_dim: int = 32
    num_queries: int | None = None
    is_uniform: bool = False
    on_cpu: bool = False

    @property
    def num_pixels(self) -> int:
        return sum(height * width for height, width in self.level_sizes_hw)


def _square(*sizes: int) -> tuple[tuple[int, int], ...]:
    return tuple((size, size) for size in sizes)


_M2F_512, _M2F_1024 = _square(16, 32, 64), _square(32, 64, 128)
_OPENSEED = _square(128, 64, 32, 16)
_DETR = ((100, 167), (50, 84), (25, 42), (13, 21))
SHAPES = (
    Shape(name="m2f-512", level_sizes_hw=_M2F_512, on_cpu=True),
    Shape(name="m2f-512-n16", level_sizes_hw=_M2F_512, num_images=16),
    Shape(name="m2f-1024", level_sizes_hw=_M2F_1024, on_cpu=True),
    Shape(name="m2f-1024-uniform", level_sizes_hw=_M2F_1024, is_uniform=True, on_cpu=True),
    Shape(name="m2f-1024-n2", level_sizes_hw=_M2F_1024, num_images=2),
    Shape(name="m2f-1024-n8", level_sizes_hw=_M2F_1024, num_images=8),
    Shape(name="m2f-1024-d64", level_sizes_hw=_M2F_1024, head_dim=64),
    Shape(name="detr-800x1333", level_sizes_hw=_DETR, num_images=2, on_cpu=True),
    Shape(name="openseed-swint-1024", level_sizes_hw=_OPENSEED, on_cpu=True),
    Shape(name="openseed-swinl-1024", level_sizes_hw=((256, 256), *_OPENSEED)),
    Shape(name="openseed-decoder-300", level_sizes_hw=_OPENSEED, num_queries=300, on_cpu=True),
    Shape(name="openseed-decoder-500", level_sizes_hw=_OPENSEED, num_images=2, num_queries=500),
)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The tensors of both forms; points and weights follow from the other three."""

    value: Tensor
    level_sizes_hw: tuple[tuple[int, int], ...]
    points_xy01: Tensor
    weights: Tensor
    reference: Tensor
    offsets: Tensor
    logits: Tensor
    grad_output: Tensor


def make_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Radial offsets (the initialisation of Deformable DETR) plus unit normal noise."""
    generator = torch.Generator().manual_seed(0)
    sizes = shape.level_sizes_hw
    num_queries = shape.num_queries or shape.num_pixels
    samples = (shape.num_images, num_queries, NUM_HEADS, len(sizes), NUM_POINTS)
    reference = _reference_points(shape, num_queries, generator)  # [B, Q, L, 2]
    angles = torch.arange(NUM_HEADS) * (2 * math.pi / NUM_HEADS)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    radial = directions[:, None, None] * torch.arange(1, NUM_POINTS + 1)[:, None]  # [N, 1, P, 2]
    offsets = radial + torch.randn(*samples, 2, generator=generator)
    scale = torch.tensor([(width, height) for height, width in sizes])[:, None]  # [L, 1, 2]
    if shape.is_uniform:
        uniform = torch.rand(*samples, 2, generator=generator)
        offsets = (uniform - reference[:, :, None, :, None]) * scale
    logits = torch.randn(*samples, generator=generator)
    value_size = (shape.num_images, shape.num_pixels, NUM_HEADS, shape.head_dim)
    output_size = (shape.num_images, num_queries, NUM_HEADS * shape.head_dim)
    # offsets and logits come from Linear layers and have their type
    offsets, logits = offsets.to(dtype), logits.to(dtype)
    points = reference[:, :, None, :, None] + offsets.float() / scale
    weights = logits.float().flatten(-2).softmax(-1).view(samples)
    tensors = {
        "value": torch.randn(value_size, generator=generator).to(dtype),
        "points_xy01": points,
        "weights": weights,
        "reference": reference,
        "offsets": offsets,
        "logits": logits,
    }
    leaves = {name: t.to(device).contiguous().requires_grad_() for name, t in tensors.items()}
    # the pixel decoder's reference points are constants
    leaves["reference"].requires_grad_(False)
    grad_output = torch.randn(output_size, generator=generator).to(device, dtype)
    return Inputs(level_sizes_hw=sizes, grad_output=grad_output, **leaves)


def _reference_points(shape: Shape, num_queries: int, generator: torch.Generator) -> Tensor:
    if shape.num_queries is None:
        grids = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1)
            for h, w in shape.level_sizes_hw
        ]
        points = torch.cat(grids)  # [Q, 2]
    else:
        points = torch.rand(num_queries, 2, generator=generator)
    size = (shape.num_images, num_queries, len(shape.level_sizes_hw), 2)
    return points[None, :, None].expand(size).contiguous()
