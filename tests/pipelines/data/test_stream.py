import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.data.config import (
    AugmentConfig,
    DataConfig,
    ImageTextDataConfig,
    SegmentationDataConfig,
)
from pipelines.data.packing import pack_coco
from pipelines.data.shards import read_index, read_manifest
from pipelines.data.stream import build_stream
from pipelines.errors import ConfigError, DataError

AUGMENT = AugmentConfig(flip_prob=0.5, scale_range=(0.6, 1.5), colour_strength=0.2)


def _config(shards: Path, num_workers: int = 0) -> DataConfig:
    return DataConfig(
        segmentation=SegmentationDataConfig(
            shards=(str(shards),), size_hw=(48, 72), batch_size=4, augment=AUGMENT
        ),
        image_text=ImageTextDataConfig(
            shards=(str(shards),), size_hw=(32, 44), batch_size=8, augment=AUGMENT
        ),
        num_workers=num_workers,
        shuffle_window=2,
    )


def _steps(config: DataConfig, count: int, *, rank=0, world_size=1, seed=0, state=None) -> list:
    stream = build_stream(config, rank=rank, world_size=world_size, seed=seed, state=state)
    try:
        return list(islice(stream, count))
    finally:
        stream.close()


def _content(batches: tuple) -> list:
    """Everything of a step that training could see, per sample."""
    segmentation, image_text = batches
    rows = [
        (
            key,
            segmentation.images[i].numpy().tobytes(),
            segmentation.segments[i].masks.numpy().tobytes(),
            segmentation.segments[i].class_ids.tolist(),
            segmentation.phrases[i].phrases,
            segmentation.phrases[i].masks.numpy().tobytes(),
        )
        for i, key in enumerate(segmentation.keys)
    ]
    texts = zip(image_text.keys, image_text.images, image_text.captions, strict=True)
    return [rows, [(key, image.numpy().tobytes(), caption) for key, image, caption in texts]]


def test_a_step_has_one_batch_of_each_task(shards: Path) -> None:
    (((segmentation, image_text), state),) = _steps(_config(shards), 1)
    assert (segmentation.task, image_text.task) == ("segmentation", "image_text")
    assert segmentation.images.shape == (4, 3, 48, 72)
    assert image_text.images.shape == (8, 3, 32, 44)
    assert segmentation.vocabulary.names == read_manifest(shards).names
    assert all(0 < len(phrases.phrases) <= 4 for phrases in segmentation.phrases)
    assert state["step"] == 1
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (2, 2), (4, 0), (4, 2)])
def test_the_global_order_is_the_same_for_all_ranks_and_workers(
    shards: Path, world_size: int, num_workers: int
) -> None:
    expected = _steps(_config(shards), 5)
    ranks = [
        _steps(_config(shards, num_workers), 5, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step, (batches, state) in enumerate(expected):
        parts = [_content(steps[step][0]) for steps in ranks]
        joined = [[row for part in parts for row in part[task]] for task in (0, 1)]
        assert joined == _content(batches)
        assert all(steps[step][1] == state for steps in ranks)


def test_an_epoch_shows_every_sample_once_and_the_next_one_in_another_order(shards: Path) -> None:
    steps = _steps(_config(shards), 7)
    keys = [key for (segmentation, _), _ in steps for key in segmentation.keys]
    assert len(set(keys[:13])) == 13
    assert set(keys[13:26]) == set(keys[:13])
    assert keys[13:26] != keys[:13]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stopped_after", [1, 4, 5])
def test_a_resumed_stream_goes_on_exactly(
    shards: Path, stopped_after: int, num_workers: int
) -> None:
    expected = _steps(_config(shards), 8)
    state = json.loads(json.dumps(_steps(_config(shards, num_workers), stopped_after)[-1][1]))
    resumed = _steps(_config(shards, num_workers), 8 - stopped_after, state=state)
    assert [_content(batches) for batches, _ in resumed] == [
        _content(batches) for batches, _ in expected[stopped_after:]
    ]
    assert resumed[-1][1] == expected[-1][1]


def test_seeds_change_order_and_augmentation(shards: Path) -> None:
    one, two = (_steps(_config(shards), 2, seed=seed) for seed in (0, 1))
    assert [b[0].keys for b, _ in one] != [b[0].keys for b, _ in two]


def test_segmentation_and_image_text_do_not_share_their_order(shards: Path) -> None:
    config = _config(shards)
    config = replace(config, image_text=replace(config.image_text, batch_size=4))
    steps = _steps(config, 3)
    assert [b[0].keys for b, _ in steps] != [b[1].keys for b, _ in steps]


def test_a_task_of_size_zero_is_left_out(shards: Path) -> None:
    config = _config(shards)
    config = replace(config, image_text=ImageTextDataConfig(batch_size=0))
    (((batch,), state),) = _steps(config, 1)
    assert batch.task == "segmentation"
    assert set(state["drawn"]) == {"segmentation"}


def test_samples_without_what_a_task_needs_are_not_drawn(own_root: Path, tmp_path: Path) -> None:
    path = own_root / "annotations/panoptic_train.json"
    document = json.loads(path.read_text())
    kept = {image["id"] for image in document["images"][:3]}
    document["images"] = [i for i in document["images"] if i["id"] in kept]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
    path.write_text(json.dumps(document))
    pack_coco(own_root, tmp_path / "out", ["train"], shard_bytes=10_000)
    steps = _steps(_config(tmp_path / "out"), 6)
    assert {int(key) for (batch, _), _ in steps for key in batch.keys} == kept
    assert len({key for (_, batch), _ in steps for key in batch.keys}) == 13


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_sample_stops_the_stream_with_shard_and_key(
    own_shards: Path, num_workers: int
) -> None:
    split = read_manifest(own_shards).splits["train"]
    row = np.array(read_index(own_shards, split))[4]
    path = own_shards / split.shards[row["shard"]].file
    blob = bytearray(path.read_bytes())
    blob[int(row["offset"]) + 900] ^= 255
    path.write_bytes(blob)
    stream = build_stream(_config(own_shards, num_workers), rank=0, world_size=1, seed=0)
    message = rf"^\S+{split.shards[row['shard']].file}: sample {row['key'].decode()} is damaged"
    with pytest.raises(DataError, match=message):
        list(islice(stream, 8))
    with pytest.raises(StopIteration):
        next(stream)


def test_a_task_without_shards_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.segmentation\.shards must name at least one"):
        build_stream(DataConfig(), rank=0, world_size=1, seed=0)


def test_shards_that_cannot_serve_a_task_are_refused(own_root: Path, tmp_path: Path) -> None:
    (own_root / "annotations/captions_train.json").unlink()
    pack_coco(own_root, tmp_path / "out", ["train"])
    message = r"image_text task needs samples with num_captions > 0 in split 'train'; none of 13"
    with pytest.raises(DataError, match=message):
        build_stream(_config(tmp_path / "out"), rank=0, world_size=1, seed=0)


def test_several_folders_are_mixed_by_weight(shards: Path) -> None:
    config = _config(shards)
    part = replace(config.segmentation, shards=(str(shards), str(shards)), weights=(3.0, 1.0))
    steps = _steps(replace(config, segmentation=part), 40)
    drawn = steps[-1][1]["drawn"]["segmentation"]
    assert sum(drawn) == 160
    assert drawn[0] > 1.5 * drawn[1] > 0


_PROGRAM = """
import os, signal, sys
from itertools import islice
from pipelines.data.config import DataConfig, ImageTextDataConfig, SegmentationDataConfig
from pipelines.data.stream import build_stream

config = DataConfig(
    segmentation=SegmentationDataConfig(shards=(sys.argv[1],), size_hw=(48, 72), batch_size=2),
    image_text=ImageTextDataConfig(batch_size=0),
    num_workers=2,
)
stream = build_stream(config, rank=0, world_size=1, seed=0)
next(stream)
{body}
"""


def _run(shards: Path, body: str) -> subprocess.CompletedProcess:
    program = _PROGRAM.format(body=textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, "-c", program, str(shards)],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )


def test_a_signal_for_the_whole_job_leaves_the_workers_alive(shards: Path) -> None:
    body = """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, lambda *_: print("asked to stop"))
        os.killpg(0, number)
        print(len(list(islice(stream, 6))), "more steps")
    """
    done = _run(shards, body)
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["asked to stop", "6 more steps"] * 4


def test_a_process_that_ends_with_an_open_stream_ends(shards: Path) -> None:
    assert _run(shards, "sys.exit(7)").returncode == 7


def test_workers_end_when_their_process_is_killed(shards: Path) -> None:
    # `_run` returns only when the last worker has let go of the pipes
    assert _run(shards, "os.kill(os.getpid(), signal.SIGKILL)").returncode == -signal.SIGKILL


def test_a_worker_that_was_killed_ends_the_stream_and_the_other_workers(shards: Path) -> None:
    stream = build_stream(_config(shards, 2), rank=0, world_size=1, seed=0)
    next(stream)
    workers = stream._items._workers
    workers[0].kill()
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid\(?s?\)? .*exited|killed"):
        list(islice(stream, 20))
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(StopIteration):
        next(stream)


def test_workers_use_their_memory_again(shards: Path) -> None:
    config = replace(_config(shards, 2), prefetch=1)
    # two workers with two slabs each
    assert [len(batches) for batches, _ in _steps(config, 15)] == [2] * 15


@pytest.mark.gpu
@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_made_on_a_gpu_are_those_made_on_the_cpu(
    shards: Path, num_workers: int, pin_memory: bool
) -> None:
    config = replace(_config(shards, num_workers), pin_memory=pin_memory)
    on_gpu = build_stream(config, rank=0, world_size=1, seed=0)
    on_gpu.device = torch.device("cuda")
    for (batches, _), (moved, _) in zip(_steps(config, 12), on_gpu, strict=False):
        for one, other in zip(batches, moved, strict=True):
            assert other.images.device.type == "cuda"
            assert torch.allclose(one.images, other.images.cpu(), atol=1e-2)
            assert one.keys == other.keys
        for kind in ("segments", "phrases"):
            for one, other in zip(getattr(batches[0], kind), getattr(moved[0], kind), strict=True):
                assert torch.equal(one.masks, other.masks.cpu())
        for one, other in zip(batches[0].segments, moved[0].segments, strict=True):
            assert torch.equal(one.class_ids, other.class_ids.cpu())
    on_gpu.close()


def test_images_are_pixels_of_0_to_255(shards: Path) -> None:
    (((segmentation, image_text), _),) = _steps(_config(shards), 1)
    for batch in (segmentation, image_text):
        assert batch.images.dtype == torch.float32
        assert batch.images.min() >= 0
        assert 150 < batch.images.max() <= 255
