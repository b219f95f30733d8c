"""How fast images reach the device, per core, against decoding them and nothing else.

    python benchmarks/bench_data.py                    scenes of 480 x 640, with a camera's noise
    python benchmarks/bench_data.py --root ROOT        photographs of a COCO-format folder
    python benchmarks/bench_data.py --memory 20000     also whether memory stays flat

`decode only` reads a sample, checks its bytes and decodes JPEG, PNG and JSON at full size: what no
loader can leave out. `stream` is the LSJ batch as a training process gets it, up to the one copy
into memory that the device reads: large-scale jitter, masks, phrases, processes, queues and all.
Making the batch at its full size is work of the device, and is timed apart. All numbers are taken
with the same number of processes, in turn, so that shared caches and clocks hit all alike.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
from data_problems import make_scenes, require_right_samples
from harness import machine_folder, machine_info, print_table

from pipelines.data import compact
from pipelines.data.collate import collate_segmentation
from pipelines.data.config import (
    AugmentConfig,
    DataConfig,
    ImageTextDataConfig,
    SegmentationDataConfig,
)
from pipelines.data.decode import decode_annotations, decode_image, decode_segment_ids
from pipelines.data.packing import pack_coco
from pipelines.data.source import ShardSource
from pipelines.data.step_memory import StepMemory
from pipelines.data.stream import DataStream, build_stream

GOAL = 0.7
# decoded in a row between two looks at the clock
CHUNK = 8
# steps of a stream that are not timed: workers start, memory is touched for the first time
WARM_UP = 12
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Images that all processes together dealt with, in seconds of wall clock and of CPU."""

    images: int
    wall_s: float
    cpu_s: float

    def per_core(self, cores: int) -> float:
        return self.images / self.wall_s / cores

    @property
    def per_cpu_second(self) -> float:
        return self.images / self.cpu_s


def config_of(shards: Path, arguments: argparse.Namespace) -> DataConfig:
    height, width = (int(side) for side in arguments.size.split("x"))
    return DataConfig(
        segmentation=SegmentationDataConfig(
            shards=(str(shards),),
            size_hw=(height, width),
            batch_size=arguments.batch,
            augment=AugmentConfig(
                flip_prob=0.5, scale_range=(0.1, 2.0), colour_strength=arguments.colour
            ),
        ),
        image_text=ImageTextDataConfig(batch_size=0),
        num_workers=arguments.workers,
        prefetch=arguments.prefetch,
    )


def decode_all(source: ShardSource, sample: int) -> None:
    raw = source.read(sample)
    annotations = decode_annotations(raw)
    decode_image(raw, annotations)
    decode_segment_ids(raw, annotations)


def decode_jpeg_only(source: ShardSource, sample: int) -> None:
    raw = source.read(sample)
    decode_image(raw, decode_annotations(raw))


def rate_of_processes(
    work: Callable[[ShardSource, int], None], source: ShardSource, processes: int, seconds: float
) -> Rate:
    """The rate of several processes that share nothing, each doing the work for so long."""
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()
    started = context.Barrier(processes)

    def measure(first: int) -> None:
        samples = cycle(np.roll(np.arange(len(source.rows)), -first).tolist())
        work(source, next(samples))
        started.wait()
        wall, cpu, images = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - wall < seconds:
            for _ in range(CHUNK):
                work(source, next(samples))
            images += CHUNK
        results.put((images, time.perf_counter() - wall, time.process_time() - cpu))

    children = [context.Process(target=measure, args=(17 * i,)) for i in range(processes)]
    for child in children:
        child.start()
    found = [results.get() for _ in children]
    for child in children:
        child.join()
    images, walls, cpus = zip(*found, strict=True)
    return Rate(images=sum(images), wall_s=statistics.mean(walls), cpu_s=sum(cpus))


@contextmanager
def opened(config: DataConfig) -> Iterator[DataStream]:
    stream = build_stream(config, rank=0, world_size=1, seed=0)
    try:
        yield stream
    finally:
        stream.close()


def take_step(stream: DataStream, staging: torch.Tensor) -> tuple[int, int]:
    """Images and bytes of the next step, copied once, as into memory that a device reads."""
    step = stream.next_built()
    staging[: step.used].copy_(stream.staged(step))
    stream.give_back(step)
    return len(step.samples["segmentation"]), step.used


def cpu_seconds() -> float:
    """Of this process and its children that are alive."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def rate_of_stream(config: DataConfig, seconds: float) -> Rate:
    with opened(config) as stream:
        staging = torch.zeros(128 * MIB, dtype=torch.uint8)
        for _ in range(WARM_UP):
            take_step(stream, staging)
        wall, cpu, images = time.perf_counter(), cpu_seconds(), 0
        while time.perf_counter() - wall < seconds:
            images += take_step(stream, staging)[0]
        return Rate(images=images, wall_s=time.perf_counter() - wall, cpu_s=cpu_seconds() - cpu)


class Stopwatch:
    """CPU time of functions by name, without what they call that is timed too."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            began = time.thread_time()
            result = function(*args, **kwargs)
            spent = time.thread_time() - began
            own = spent - self._inner.pop()
            self._inner[-1] += spent
            self.seconds[name] = self.seconds.get(name, 0.0) + own
            return result

        return run


STAGES = {
    "read": "read, checksum, tar",
    "decode_annotations": "JSON",
    "decode_image": "JPEG (at a fraction where it shrinks)",
    "decode_segment_ids": "PNG of the segments",
    "decode_region": "RLE of the phrases' regions",
    "shrink_image": "crop and shrink the image",
    "shrink_labels": "crop and shrink masks",
    "_labels": "ids to labels, which are seen",
    "draw_colour": "colour",
    "place": "copy into the slab",
    "sample": "draws, objects, the rest of a sample",
}


def breakdown(
    config: DataConfig, source: ShardSource, rounds: int
) -> tuple[dict[str, float], float, float]:
    """Milliseconds of each stage per image, of making the batch on the CPU, and bytes per image."""
    part, watch = config.segmentation, Stopwatch()
    memory = torch.zeros(64 * MIB, dtype=torch.uint8)
    finishing, used, images = 0.0, 0, 0
    with ExitStack() as stack:
        for name in STAGES:
            if hasattr(compact, name):
                timed = watch.timed(name, getattr(compact, name))
                stack.enter_context(patch.object(compact, name, timed))
        place = watch.timed("place", StepMemory.place)
        stack.enter_context(patch.object(StepMemory, "place", lambda self, a: place(self, a)))
        read = watch.timed("read", source.read)
        build = watch.timed("sample", compact.compact_segmentation)
        for epoch in range(rounds):
            for number in range(len(source.rows)):
                step = StepMemory(memory)
                sample = build(read(number), part, step, seed=0, epoch=epoch, num_classes=1 << 15)
                began = time.thread_time()
                collate_segmentation((sample,), source.vocabulary, memory)
                finishing += time.thread_time() - began
                used, images = used + step.used, images + 1
    stages = {STAGES[name]: 1e3 * watch.seconds.get(name, 0.0) / images for name in STAGES}
    return stages, 1e3 * finishing / images, used / images


def memory_curve(config: DataConfig, samples: int) -> list[tuple[int, float]]:
    """Samples so far and MiB of all processes together, at ten places."""
    curve, images, shown = [], 0, 0
    with opened(config) as stream:
        staging = torch.zeros(128 * MIB, dtype=torch.uint8)
        while images < samples:
            images += take_step(stream, staging)[0]
            if images - shown >= samples / 10:
                processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
                # shared pages are counted once, a share in each process that maps them
                total = sum(process.memory_full_info().pss for process in processes)
                curve.append((images, total / MIB))
                shown = images
    return curve


def bench(config: DataConfig, source: ShardSource, arguments: argparse.Namespace) -> dict[str, Any]:
    workers, seconds = arguments.workers, arguments.seconds / arguments.rounds
    cores = min(workers, os.cpu_count() or 1)
    runs: dict[str, list[Rate]] = {"decode only": [], "JPEG only": [], "stream": []}
    for _ in range(arguments.rounds):
        runs["decode only"].append(rate_of_processes(decode_all, source, workers, seconds))
        runs["stream"].append(rate_of_stream(config, seconds))
        runs["JPEG only"].append(rate_of_processes(decode_jpeg_only, source, workers, seconds))
    stages, finishing, num_bytes = breakdown(config, source, rounds=3)
    rows = [
        {
            "what": name,
            "images_per_s_per_core": statistics.median(r.per_core(cores) for r in rates),
            "images_per_cpu_s": statistics.median(r.per_cpu_second for r in rates),
            "spread": [round(r.per_core(cores), 1) for r in rates],
        }
        for name, rates in runs.items()
    ]
    decode, stream = (next(r for r in rows if r["what"] == n) for n in ("decode only", "stream"))
    shares = {
        key: stream[key] / decode[key] for key in ("images_per_s_per_core", "images_per_cpu_s")
    }
    return {
        "rows": rows,
        "stream_over_decode_only": shares,
        "stages_ms": stages,
        "stream_cpu_ms": 1e3 / stream["images_per_cpu_s"],
        "batch_on_cpu_ms": finishing,
        "mib_per_image": num_bytes / MIB,
    }


def show(result: dict[str, Any]) -> None:
    lines = [
        (row["what"], row["images_per_s_per_core"], row["images_per_cpu_s"], str(row["spread"]))
        for row in result["rows"]
    ]
    print_table(("what", "images/s/core", "images/CPU s", "rounds"), lines)
    shares = result["stream_over_decode_only"]
    print(
        f"\nstream over decode only: {shares['images_per_s_per_core']:.0%} per core, "
        f"{shares['images_per_cpu_s']:.0%} per CPU second (goal {GOAL:.0%})\n"
    )
    stages = sorted(result["stages_ms"].items(), key=lambda item: -item[1])
    rest = result["stream_cpu_ms"] - sum(ms for _, ms in stages)
    lines = [(name, ms, f"{ms / result['stream_cpu_ms']:.0%}") for name, ms in stages]
    lines.append(("processes, queues, the copy", rest, f"{rest / result['stream_cpu_ms']:.0%}"))
    print_table(("stage of the stream", "ms of CPU per image", "share"), lines)
    print(
        f"\n{result['mib_per_image']:.2f} MiB per image reach the device. Making the batch of them "
        f"takes {result['batch_on_cpu_ms']:.2f} ms per image on one CPU core, where there is no "
        "other device."
    )


def show_memory(curve: list[tuple[int, float]]) -> dict[str, Any]:
    lines = [(count, mib) for count, mib in curve]
    print_table(("samples", "MiB, all processes"), lines)
    # the first tenths see the largest steps and fill the caches of the allocator
    settled = [mib for _, mib in curve[2:]]
    growth = (settled[-1] - settled[0]) / settled[0]
    print(f"\nfrom {curve[2][0]} samples on, memory changed by {growth:+.1%}\n")
    return {"curve": curve, "growth": growth}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="COCO-format folder; default: scenes made here")
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=96, help="scenes to make")
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--colour", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--prefetch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each kind, over all rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, default=0, metavar="SAMPLES", help="0 = not measured")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/...")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = arguments.root or make_scenes(folder, arguments.images)
        split = arguments.split
        pack_coco(root, folder / "shards", [split])
        config = replace(config_of(folder / "shards", arguments), split=split)
        source = ShardSource.open(str(folder / "shards"), split, "segmentation", cache=None)
        jpeg_bytes = statistics.mean(
            len(source.read(number).member("jpg")) for number in range(len(source.rows))
        )
        data = {
            "images": len(source.rows),
            "from": "scenes" if arguments.root is None else root.name,
            "jpeg_kib": round(jpeg_bytes / 1024, 1),
            "batch": [arguments.batch, arguments.size],
            "colour": arguments.colour,
            "workers": arguments.workers,
        }
        require_right_samples(config, source)
        print(f"samples are right alone, in the stream and by a slow way; {data}\n")
        result = bench(config, source, arguments)
        show(result)
        if arguments.memory:
            result["memory"] = show_memory(memory_curve(config, arguments.memory))
    path = arguments.json or machine_folder("cpu") / f"data_{data['from']}.json"
    document = {"machine": machine_info("cpu"), "data": data, **result}
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
