"""Every random choice of a training step comes through one of these objects."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class UniformSource(ABC):
    """Gives uniform numbers; permutations and choices are derived from them."""

    @abstractmethod
    def uniform(self, *shape: int) -> Float[Tensor, "..."]:
        """Float32 numbers in [0, 1) on the CPU."""

    def permutation(self, count: int) -> list[int]:
        """The numbers 0..count-1 in random order."""
        return torch.argsort(self.uniform(count), stable=True).tolist()

    def choice(self, count: int) -> int:
        """One of the numbers 0..count-1."""
        return min(int(self.uniform(1).item() * count), count - 1)

    def choices(self, count: int, num_draws: int) -> list[int]:
        """Independent choices among 0..count-1."""
        return (self.uniform(num_draws) * count).long().clamp_(max=count - 1).tolist()


class Draws(UniformSource):
    """Draws from a generator on the CPU, so that they do not depend on the device.

    A step that makes a new object from (seed, step, rank) can be repeated without stored state;
    `generator` is public for a caller that would rather keep one object and save its state.
    """

    def __init__(self, *seeds: int) -> None:
        self.generator = torch.Generator(device="cpu")
        self.generator.manual_seed(_mix(seeds))

    def uniform(self, *shape: int) -> Float[Tensor, "..."]:
        return torch.rand(shape, generator=self.generator, dtype=torch.float32)


class RecordedDraws(UniformSource):
    """Plays back draws that were recorded elsewhere, in order.

    Raises: ValueError from `uniform` when the shapes differ or nothing is left.
    """

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self._draws = list(draws)
        self._num_used = 0

    def uniform(self, *shape: int) -> Float[Tensor, "..."]:
        if self._num_used == len(self._draws):
            raise ValueError(
                f"RecordedDraws: all {len(self._draws)} draws are used; asked for {list(shape)}. "
                "Record one more, or ask in the recorded order."
            )
        draw = self._draws[self._num_used]
        if tuple(draw.shape) != shape:
            raise ValueError(
                f"RecordedDraws: draw {self._num_used} was recorded as {list(draw.shape)}; asked "
                f"for {list(shape)}. Ask in the recorded order."
            )
        self._num_used += 1
        return draw


def _mix(seeds: Sequence[int]) -> int:
    """One 63-bit seed from several, by the multiply-and-shift steps of splitmix64."""
    mask = (1 << 64) - 1
    state = len(seeds)
    for seed in seeds:
        state = (state ^ (seed & mask)) + 0x9E3779B97F4A7C15 & mask
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
        state ^= state >> 31
    return state >> 1
