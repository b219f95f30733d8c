"""Two gloo processes together compute what one computes alone."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from xdecoder.losses.contrastive import contrastive_terms, first_of_equals, text_ids
from xdecoder.losses.world import World

TEXTS = ["a", "b", "c", "a", "d"]
# what each of two processes holds of five rows
PARTS = (slice(0, 2), slice(2, 5))


def contrast(weight, images, texts, names):
    """A step's contrastive loss, with the rows of all processes."""
    world = World()
    ids = world.gather(text_ids(names))
    columns = first_of_equals(ids)
    is_positive = ids[:, None] == ids[columns][None]
    rows = world.gather(images @ weight)
    words = world.gather(texts @ weight)[columns]
    return contrastive_terms(rows[None], words, is_positive, torch.tensor(4.0))[0]


def data():
    generator = torch.Generator().manual_seed(3)
    draw = [torch.randn(*shape, generator=generator) for shape in [(5, 6), (5, 6), (6, 4)]]
    return draw[0], draw[1], draw[2]


def process(rank, port, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    images, texts, weight = data()
    weight.requires_grad_()
    own = PARTS[rank]
    loss = contrast(weight, images[own], texts[own], TEXTS[own])
    loss.backward()
    # what DDP and ZeRO do with gradients
    dist.all_reduce(weight.grad)
    counts = World().mean(torch.tensor([1.0 + rank, 4.0]))
    results[rank] = (loss.item(), weight.grad / 2, counts)
    dist.destroy_process_group()


@pytest.mark.dist
def test_the_number_of_processes_changes_neither_loss_nor_gradient():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(process, args=(port, results), nprocs=2)
        found = [results[0], results[1]]
    images, texts, weight = data()
    weight.requires_grad_()
    loss = contrast(weight, images, texts, TEXTS)
    loss.backward()
    for value, gradient, counts in found:
        assert value == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(gradient, weight.grad)
        assert counts.tolist() == [1.5, 4.0]


def test_one_process_keeps_its_rows_and_counts():
    rows = torch.randn(3, 2)
    world = World()
    assert world.gather(rows) is rows
    assert torch.equal(world.mean(rows[0]), rows[0])
    assert (world.size, world.rank) == (1, 0)
