"""Other implementations of deformable attention, each imported only when it is installed."""

import importlib.metadata
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

Levels = Sequence[tuple[int, int]]
Peer = Callable[[Tensor, Levels, Tensor, Tensor], Tensor]


def available(device: str, *, with_compile: bool) -> dict[str, Peer]:
    """The peers that can be imported here, by name."""
    makers: dict[str, Callable[[], Peer]] = {
        "transformers": _transformers,
        "torch-ms-deform-attn": _torch_ms_deform_attn,
    }
    if with_compile:
        makers["transformers-compile"] = _transformers_compiled
    if device == "cuda":
        makers["deformops"] = _deformops
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            print(f"peer {name} is left out: {error}")
    return found


def describe(device: str) -> dict[str, str]:
    """Installed versions of the packages that peers come from."""
    versions = {}
    for package in ("transformers", "torch-ms-deform-attn", "deformops"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


@lru_cache(maxsize=64)
def _level_tensors(levels: Levels, device: torch.device) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor(levels, dtype=torch.int64, device=device)
    areas = sizes.prod(1)
    return sizes, areas.cumsum(0) - areas


def _transformers() -> Peer:
    from transformers.models.deformable_detr import modeling_deformable_detr

    module = modeling_deformable_detr.MultiScaleDeformableAttention()

    def run(value: Tensor, levels: Levels, points: Tensor, weights: Tensor) -> Tensor:
        sizes, starts = _level_tensors(levels, value.device)
        # its grid_sample wants one type for values and points
        points, weights = points.to(value.dtype), weights.to(value.dtype)
        return module(value, sizes, levels, starts, points, weights, 64)

    return run


def _transformers_compiled() -> Peer:
    return torch.compile(_transformers())


def _torch_ms_deform_attn() -> Peer:
    from torch_ms_deform_attn import ms_deform_attn

    def run(value: Tensor, levels: Levels, points: Tensor, weights: Tensor) -> Tensor:
        sizes, starts = _level_tensors(levels, value.device)
        points, weights = points.to(value.dtype), weights.to(value.dtype)
        return ms_deform_attn(value, sizes, starts, points, weights)

    return run


def _deformops() -> Peer:
    import deformops

    def run(value: Tensor, levels: Levels, points: Tensor, weights: Tensor) -> Tensor:
        sizes, starts = _level_tensors(levels, value.device)
        return deformops.multi_scale_deformable_attention(value, sizes, starts, points, weights)

    return run
