from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pipelines.config import ParallelConfig
from pipelines.engine.distributed import ProcessPlace
from pipelines.engine.machine import choose_device, memory_gib, to_device
from pipelines.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Part:
    masks: Tensor
    name: str


@dataclass(frozen=True, kw_only=True)
class Whole:
    images: Tensor
    parts: tuple[Part, ...]
    keys: tuple[str, ...]


def test_every_tensor_of_a_batch_moves_and_the_rest_stays() -> None:
    batch = Whole(
        images=torch.ones(2, 3), parts=(Part(masks=torch.ones(1), name="a"),), keys=("k",)
    )
    moved = to_device((batch,), torch.device("meta"))[0]
    assert moved.images.device.type == "meta"
    assert moved.parts[0].masks.device.type == "meta"
    assert (moved.keys, moved.parts[0].name) == (("k",), "a")


def test_missing_gpu_is_refused_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(ParallelConfig(device="auto"), ProcessPlace()).type == "cpu"
    with pytest.raises(ConfigError, match=r"none is visible\. Set parallel\.device=cpu"):
        choose_device(ParallelConfig(device="cuda"), ProcessPlace())


@pytest.mark.parametrize(("num_visible", "index"), [(4, 3), (1, 0)])
def test_rank_takes_its_own_gpu_whether_it_sees_all_or_one(
    num_visible: int, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    place = ProcessPlace(rank=7, world_size=8, local_rank=3)
    assert choose_device(ParallelConfig(), place).index == index


def test_memory_of_the_process_is_between_a_tenth_and_a_thousand_gib() -> None:
    assert 0.1 < memory_gib(torch.device("cpu")) < 1000
