import multiprocessing

import numpy as np
import pytest
import torch

from pipelines.data.step_memory import SlabRing, StepMemory


def test_arrays_are_found_again_in_a_copy_of_the_memory() -> None:
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (5, 7, 3), dtype=np.uint8),
        rng.integers(-9, 900, (3, 11), dtype=np.int16),
        rng.random((4, 9)) > 0.5,
        np.asfortranarray(rng.random((6, 5)) > 0.5),
        rng.integers(0, 256, (8, 10), dtype=np.uint8)[2:7, 3:9],
        np.zeros((0, 4), bool),
    ]
    memory = StepMemory(torch.full((1000,), 77, dtype=torch.uint8))
    planes = [memory.place(array) for array in arrays]
    copy = memory.memory[: memory.used].clone()
    memory.memory.zero_()
    for array, plane in zip(arrays, planes, strict=True):
        assert np.array_equal(plane.view(copy).numpy(), array)
        assert plane.offset % 8 == 0
    assert planes[3].is_transposed


def test_memory_that_is_too_small_says_so() -> None:
    memory = StepMemory(torch.empty(30, dtype=torch.uint8))
    memory.place(np.zeros(20, np.uint8))
    with pytest.raises(ValueError, match="StepMemory: must hold 34 bytes; it has 30"):
        memory.place(np.zeros(10, np.uint8))


def _write(ring: SlabRing, numbers: "multiprocessing.SimpleQueue") -> None:
    slab = ring.take(1)
    ring.memory(slab)[:3] = torch.tensor([5, 6, 7], dtype=torch.uint8)
    numbers.put(slab)


def test_a_slab_that_another_process_took_is_seen_and_given_back() -> None:
    ring = SlabRing(num_workers=2, slabs_per_worker=2, num_bytes=64)
    context = multiprocessing.get_context("fork")
    numbers = context.SimpleQueue()
    for expected in (2, 3):
        process = context.Process(target=_write, args=(ring, numbers))
        process.start()
        assert numbers.get() == expected
        process.join()
    assert ring.memory(2)[:3].tolist() == [5, 6, 7]
    with pytest.raises(RuntimeError, match="worker 1 must have a free slab of 2; more steps"):
        ring.take(1)
    ring.give_back(3)
    assert ring.take(1) == 3
    assert ring.take(0) == 0
