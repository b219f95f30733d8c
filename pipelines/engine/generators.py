"""The global random generators of a process, as plain values.

Losses and data draw from generators of their own, seeded by (seed, step, rank). What is left is
for layers that know nothing of that: drop-path in a backbone of a library.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_generators(seed: int, rank: int) -> None:
    """Make the global generators of this rank independent of those of other ranks."""
    mixed = seed * 1_000_003 + rank
    random.seed(mixed)
    np.random.seed(mixed % 2**32)  # noqa: NPY002
    torch.manual_seed(mixed)


def read_generators(*, is_cuda: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of PyTorch's generators as tensors, those of Python and NumPy as JSON values."""
    tensors = {"cpu": torch.get_rng_state()}
    if is_cuda:
        tensors["cuda"] = torch.cuda.get_rng_state()
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return tensors, {
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def write_generators(tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put the global generators where `read_generators` found them."""
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = values["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
