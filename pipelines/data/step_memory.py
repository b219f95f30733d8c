"""Arrays of a step side by side in one stretch of memory, and the few words that find them again.

worker process                         training process
place(array) -> Plane   --Plane-->     plane.view(memory or its copy on a device)
  |                                      ^
  +---> memory of one slab --------------+      mapped by both, written again and again
"""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from numpy import ndarray
from torch import Tensor

# no element of ours is larger
_ALIGNMENT = 8
_DTYPES = {"uint8": torch.uint8, "int16": torch.int16, "bool": torch.bool}


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Where an array lies in the memory of its step; `dtype` is a name that NumPy and torch share.

    is_transposed: its last two axes lie in memory the other way round.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: str
    is_transposed: bool = False

    def view(self, memory: UInt8[Tensor, " n"]) -> Shaped[Tensor, "..."]:
        """The array, without a copy, in this memory or in any copy of it."""
        dtype = _DTYPES[self.dtype]
        num_bytes = prod(self.shape) * dtype.itemsize
        array = memory[self.offset : self.offset + num_bytes].view(dtype).view(self.shape)
        return array.transpose(-2, -1) if self.is_transposed else array


class StepMemory:
    """Memory that arrays are placed in one after another.

    used: bytes from the start that hold something.
    """

    def __init__(self, memory: UInt8[Tensor, " n"]) -> None:
        self.memory = memory
        self.used = 0
        self._bytes = memory.numpy()

    def place(self, array: Shaped[ndarray, "..."]) -> Plane:
        """Where the array was copied to; its axes stay in the order in which they lie in memory.

        Raises:
            ValueError: there is no room.
        """
        is_transposed = array.ndim == 2 and array.strides[0] < array.strides[1]
        source = array.T if is_transposed else array
        offset, end = self.used, self.used + source.nbytes
        if end > len(self._bytes):
            raise ValueError(
                f"StepMemory: must hold {end} bytes; it has {len(self._bytes)}. Count the arrays "
                "of a step again."
            )
        target = self._bytes[offset:end].view(source.dtype).reshape(source.shape)
        np.copyto(target, source)
        self.used = end + -end % _ALIGNMENT
        return Plane(
            offset=offset,
            shape=source.shape,
            dtype=source.dtype.name,
            is_transposed=is_transposed,
        )


class SlabRing:
    """Memory for the steps of all workers, shared with them and used again and again.

    A worker takes one of its own slabs for a step, the training process gives it back when it has
    copied the step. Fresh memory for each step would cost a page fault per 4 KiB in two processes.
    """

    def __init__(self, *, num_workers: int, slabs_per_worker: int, num_bytes: int) -> None:
        self.slabs_per_worker = slabs_per_worker
        # files without a name: they are gone with the last process, however it ends
        self._slabs = [_shared(num_bytes) for _ in range(num_workers * slabs_per_worker)]
        self._is_taken = _shared(len(self._slabs)).zero_()

    def take(self, worker: int) -> int:
        """The number of a slab that nobody uses, in a worker."""
        first = worker * self.slabs_per_worker
        for slab in range(first, first + self.slabs_per_worker):
            if not self._is_taken[slab]:
                self._is_taken[slab] = 1
                return slab
        raise RuntimeError(
            f"SlabRing: worker {worker} must have a free slab of {self.slabs_per_worker}; "
            "more steps are under way than data.prefetch allows."
        )

    def memory(self, slab: int) -> UInt8[Tensor, " n"]:
        """The memory of a slab, in any process."""
        return self._slabs[slab]

    def give_back(self, slab: int) -> None:
        """Let the worker write over the slab, in the training process."""
        self._is_taken[slab] = 0


def _shared(num_bytes: int) -> UInt8[Tensor, " n"]:
    # takes pages only where something is written, unlike `share_memory_`, which copies
    storage = torch.UntypedStorage._new_shared(num_bytes, device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage)
