"""A run over shards of which some samples are damaged."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from pipelines.config import RunConfig
from pipelines.data.config import DataConfig, ImageTextDataConfig, SegmentationDataConfig
from pipelines.data.packing import pack_coco
from pipelines.data.shards import read_index, read_manifest
from pipelines.data.stream import build_stream
from pipelines.engine.distributed import Group, ProcessPlace
from pipelines.engine.session import Request, run
from pipelines.engine.signals import StopFlag
from pipelines.errors import DataError, ExitCode
from pipelines.scenes.dataset import ScenesRequest, write_scenes
from pipelines.tracking.jsonl import read_events, read_metrics
from xdecoder.batch import Batch

DAMAGED_ROW = 3


@pytest.fixture(scope="module")
def damaged_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Eleven scenes, one of which has a flipped byte, and its key."""
    folder = tmp_path_factory.mktemp("damaged")
    request = ScenesRequest(num_train=11, num_val=1, num_zeroshot=1, size_hw=(48, 64), seed=2)
    write_scenes(request, folder / "root")
    pack_coco(folder / "root", folder / "shards", ["train"])
    split = read_manifest(folder / "shards").splits["train"]
    row = np.array(read_index(folder / "shards", split))[DAMAGED_ROW]
    path = folder / "shards" / split.shards[row["shard"]].file
    blob = bytearray(path.read_bytes())
    blob[int(row["offset"]) + 800] ^= 1
    path.write_bytes(blob)
    return folder / "shards", row["key"].decode()


@pytest.fixture
def train(tiny: ModuleType, damaged_shards: tuple[Path, str]) -> Callable[..., int]:
    """Train the tiny model on captions of the shards: folder, settings of the data, a place."""

    class Losses(tiny.TinyLosses):
        def forward(
            self, batches: Sequence[Batch], draws: object, counts: Mapping | None = None
        ) -> dict[str, torch.Tensor]:
            (batch,) = batches
            words = tuple(str(len(caption) % 11) for caption in batch.captions)
            return super().forward([replace(batch, captions=words)], draws, counts)

    def train(
        folder: Path,
        *,
        steps: int = 12,
        place: ProcessPlace | None = None,
        **fields: float,
    ) -> int:
        data = DataConfig(
            segmentation=SegmentationDataConfig(batch_size=0),
            image_text=ImageTextDataConfig(
                shards=(str(damaged_shards[0]),), size_hw=(tiny.HEIGHT, tiny.WIDTH), batch_size=4
            ),
            **fields,
        )
        config: RunConfig = replace(tiny.tiny_config(str(folder)), data=data, steps=steps)
        return run(
            config,
            Request(
                make_losses=lambda _config, device: Losses().to(device).train(),
                make_stream=build_stream,
            ),
            group=Group(place or ProcessPlace(), is_cuda=False),
            device=torch.device("cpu"),
            stop=StopFlag(),
        )

    yield train
    torch.use_deterministic_algorithms(False)


def test_a_damaged_sample_is_counted_in_rows_events_and_log(
    tmp_path: Path, train: Callable[..., int], damaged_shards: tuple[Path, str]
) -> None:
    shards, key = damaged_shards
    assert train(tmp_path, num_workers=1) == ExitCode.FINISHED
    events = [e for e in read_events(tmp_path) if e["event"] == "damaged_sample"]
    # 48 samples of 11 are four epochs and a half
    assert [event["epoch"] for event in events] in ([0, 1, 2, 3], [0, 1, 2, 3, 4])
    for event in events:
        assert (event["key"], event["task"]) == (key, "image_text")
        assert event["shard"] == str(shards / "train-000000.tar")
        assert event["reason"].startswith("is damaged (")
    counts = [row["damaged_samples"] for row in read_metrics(tmp_path) if "damaged_samples" in row]
    assert counts[-1] == len(events)
    assert counts == sorted(counts)
    (log,) = (tmp_path / "logs").glob("*.rank00000.log")
    assert log.read_text().count(f"skipped a damaged sample: {shards}") == len(events)


def test_the_count_goes_on_where_the_checkpoint_left_it(
    tmp_path: Path, train: Callable[..., int]
) -> None:
    train(tmp_path / "whole")
    train(tmp_path / "cut", steps=7)
    resolved = tmp_path / "cut/config.resolved.json"
    resolved.write_text(resolved.read_text().replace('"steps": 7', '"steps": 12'))
    train(tmp_path / "cut")
    last = [read_metrics(tmp_path / name)[-1] for name in ("whole", "cut")]
    assert last[0]["damaged_samples"] == last[1]["damaged_samples"] >= 4


def test_too_much_damage_ends_the_run(tmp_path: Path, train: Callable[..., int]) -> None:
    with pytest.raises(DataError, match=r"data: at most 1 samples, or a share of 0\.001, may be"):
        train(tmp_path, max_damaged=1)
    (failed,) = [e for e in read_events(tmp_path) if e["event"] == "failed"]
    assert "train-000000.tar: sample" in failed["error"]
    assert failed["step"] < 12
    # rows up to the end are there, and say how many
    assert read_metrics(tmp_path)[-1]["damaged_samples"] == 2


def _rank(train: Callable[..., int], folder: Path, place: ProcessPlace) -> None:
    try:
        train(folder, place=place, max_damaged=0)
    except DataError as error:
        os._exit(int(error.exit_code))
    os._exit(0)


@pytest.mark.dist
def test_all_ranks_end_together_when_one_of_them_meets_too_much(
    tmp_path: Path, train: Callable[..., int]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(
            target=_rank,
            args=(
                train,
                tmp_path,
                ProcessPlace(
                    rank=rank,
                    local_rank=rank,
                    world_size=2,
                    master_addr="127.0.0.1",
                    master_port=port,
                ),
            ),
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=100)
    assert [process.exitcode for process in processes] == [ExitCode.DATA, ExitCode.DATA]
    logs = [path.read_text() for path in sorted((tmp_path / "logs").glob("*.log"))]
    assert len(logs) == 2
    # one of them only met the sample
    assert sorted(log.count("skipped a damaged sample") for log in logs) == [0, 1]
