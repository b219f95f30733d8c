"""Image trunks: modules that give maps at strides 4, 8, 16 and 32, and say their widths."""

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

STRIDES = (4, 8, 16, 32)


class Backbone(Protocol):
    """What the model needs of a trunk."""

    out_dims: tuple[int, int, int, int]

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Sequence[Tensor]: ...


def drop_path_rates(num_blocks: int, *, last: float) -> list[float]:
    """Probabilities of dropping a block's branch, rising from 0 to `last`."""
    return [last * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
