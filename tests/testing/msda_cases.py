"""Problems and error measures that the tests of deformable attention share."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

import kernels

# odd, one-pixel and lopsided levels; never two that are alike
LEVEL_SIZES_HW = ((5, 7), (3, 4), (1, 1), (1, 6), (9, 2))
INSTRUCTION_SETS = ("avx512", "avx2", "baseline")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of one problem; no two of them are equal by default."""

    num_images: int = 2
    num_queries: int = 9
    num_heads: int = 3
    head_dim: int = 8
    num_levels: int = 4
    num_points: int = 5

    @property
    def level_sizes_hw(self) -> tuple[tuple[int, int], ...]:
        return LEVEL_SIZES_HW[: self.num_levels]

    @property
    def num_pixels(self) -> int:
        return sum(height * width for height, width in self.level_sizes_hw)

    @property
    def samples_size(self) -> tuple[int, ...]:
        sizes = (self.num_images, self.num_queries, self.num_heads)
        return (*sizes, self.num_levels, self.num_points)


def make_points(case: Case, generator: torch.Generator) -> Tensor:
    """Points at thirds between pixel centres, from two pixels outside to two outside.

    There the gradient does not jump, so rounding cannot change it.
    """
    size = case.samples_size
    sizes_wh = torch.tensor([(w, h) for h, w in case.level_sizes_hw], dtype=torch.float64)
    sizes_wh = sizes_wh[:, None]  # [L, 1, 2]
    uniform = torch.rand(*size, 2, generator=generator, dtype=torch.float64)
    pixels = (uniform * (sizes_wh + 4)).floor() - 2 + 1 / 3
    return (pixels + 0.5) / sizes_wh


def points_inputs(
    case: Case, *, dtype: torch.dtype, seed: int = 0, device: str = "cpu"
) -> list[Tensor]:
    """value, points_xy01, weights as leaves; points are float32 under 16-bit values."""
    generator = torch.Generator().manual_seed(seed)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    value = torch.randn(
        case.num_images, case.num_pixels, case.num_heads, case.head_dim, generator=generator
    )
    weights = torch.rand(case.samples_size, generator=generator)
    tensors = (value.to(dtype), make_points(case, generator).to(exact), weights.to(exact))
    return [tensor.to(device).requires_grad_() for tensor in tensors]


def fused_inputs(
    case: Case, *, coordinates: int, dtype: torch.dtype, seed: int = 0, device: str = "cpu"
) -> list[Tensor]:
    """value, reference, offsets, logits as leaves; the sampled points are those of `make_points`.

    `coordinates` is 2 for reference points and 4 for boxes.
    """
    generator = torch.Generator().manual_seed(seed)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    value, points, _ = points_inputs(case, dtype=torch.float64, seed=seed)
    shape = (case.num_images, case.num_queries, case.num_levels, 2)
    reference = torch.rand(shape, generator=generator, dtype=torch.float64)
    sizes_wh = torch.tensor([(w, h) for h, w in case.level_sizes_hw], dtype=torch.float64)
    difference = points - reference[:, :, None, :, None]
    offsets = difference * sizes_wh[:, None]
    if coordinates == 4:
        extent = 0.2 + torch.rand(shape, generator=generator, dtype=torch.float64)
        offsets = difference * case.num_points / (0.5 * extent[:, :, None, :, None])
        reference = torch.cat([reference, extent], -1)
    logits = torch.randn(case.samples_size, generator=generator, dtype=torch.float64)
    tensors = (value.detach().to(dtype), reference.to(exact), offsets.detach().to(exact))
    leaves = (*tensors, logits.to(exact))
    return [tensor.to(device).requires_grad_() for tensor in leaves]


def results(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    output = function(*inputs)
    grads = torch.autograd.grad(output, inputs, grad_output.to(output))
    return [output.detach(), *grads]


def call(case: Case, inputs: Sequence[Tensor], *, backend: str | None) -> Callable[..., Tensor]:
    """The public function that takes `inputs`, at the levels of `case`."""
    is_points = len(inputs) == 3
    function = (
        kernels.multi_scale_deformable_attention
        if is_points
        else kernels.fused_deformable_attention
    )
    return lambda value, *rest: function(value, case.level_sizes_hw, *rest, backend=backend)


def as_double(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The same numbers in float64, as new leaves on the CPU."""
    return [tensor.detach().double().cpu().requires_grad_() for tensor in inputs]


def grad_output_of(case: Case, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """A random gradient of the output, representable in `dtype`."""
    size = (case.num_images, case.num_queries, case.num_heads * case.head_dim)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def largest_errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Largest absolute errors over the largest magnitudes; infinite where NaN are misplaced."""
    errors = []
    for one, other in zip(found, exact, strict=True):
        one = one.detach().double().cpu()
        if one.shape != other.shape or not torch.equal(one.isnan(), other.isnan()):
            errors.append(float("inf"))
        elif one.numel() == 0:
            errors.append(0.0)
        else:
            scale = other.nan_to_num().abs().max().clamp_min(1e-300)
            errors.append(float((one - other).nan_to_num().abs().max() / scale))
    return errors


def limit_instruction_set(name: str | None) -> str:
    """Let the CPU kernels use nothing wider than `name`; returns what they use now."""
    library = ctypes.CDLL(str(Path(kernels.__file__).parent / "_cpu.so"))
    library.xdec_limit_instruction_set.restype = ctypes.c_char_p
    library.xdec_limit_instruction_set.argtypes = [ctypes.c_char_p]
    return library.xdec_limit_instruction_set(name and name.encode()).decode()


def sizes_of(case: Case) -> list[int]:
    """All sizes of `case`, to see that none repeats."""
    return [getattr(case, field.name) for field in fields(case)]
