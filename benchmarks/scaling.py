"""Check the scaling model with what one and two ranks of this machine can show.

    python benchmarks/scaling.py

1. Two processes time collectives of many sizes: bandwidth and latency of their link.
2. One rank trains the embedded scenes with two batch sizes, beside a second that does the same and
   knows nothing of it: achieved rate while all cores are busy, and overhead of a step.
3. The model predicts the step of two ranks, and the memory of each; two ranks are then measured.

Writes benchmarks/results/<machine>/scaling.json.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from harness import machine_folder, machine_info, print_table

from pipelines.config import RunConfig
from pipelines.data.stream import build_stream
from pipelines.engine.dry_run import activation_bytes, work_of
from pipelines.engine.optim import parameter_groups
from pipelines.engine.scaling_model import GIB, Link, Machine, Prediction, Work, predict
from pipelines.engine.session import build_losses
from pipelines.engine.workload import forward_flops
from pipelines.overrides import override
from pipelines.recipes import RECIPES
from pipelines.tracking.jsonl import read_metrics

REPOSITORY = Path(__file__).resolve().parents[1]
SIZES = tuple(2**power for power in range(12, 27, 2))
NUM_STEPS, NUM_WARM = 20, 4
BATCHES = ((4, 8), (8, 16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<machine>")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    out = options.out or machine_folder("cpu")
    link, times = measured_link()
    print_table(("bytes", "measured ms", "fitted ms"), fitted_rows(link, times))
    with tempfile.TemporaryDirectory() as folder:
        shards = make_scenes(Path(folder))
        small, large = (measured_run(Path(folder), shards, batch, ranks=1) for batch in BATCHES)
        machine = fitted_machine(link, small, large)
        two = measured_run(Path(folder), shards, BATCHES[1], ranks=2)
    found = predict(two["work"], machine, num_ranks=2, zero_stage=0)
    rows = comparison(found, large, two)
    print_table(("what", "predicted", "measured", "ratio"), rows)
    document = {
        "machine": machine_info("cpu"),
        "link": asdict(link),
        "collectives": [{"bytes": size, "seconds": seconds} for size, seconds in times],
        "achieved_flops": machine.flops,
        "overhead_seconds": machine.overhead,
        "one_rank_seconds": {"small": small["seconds"], "large": large["seconds"]},
        "comparison": [
            dict(zip(("what", "predicted", "measured"), row, strict=False)) for row in rows
        ],
    }
    (out / "scaling.json").write_text(json.dumps(document, indent=1) + "\n")


def measured_link() -> tuple[Link, list[tuple[int, float]]]:
    """Bandwidth and latency between two processes, fitted to the times of reduced sizes."""
    port = free_port()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        multiprocessing.spawn(time_collectives, args=(port, file.name), nprocs=2)
        times = [tuple(pair) for pair in json.loads(Path(file.name).read_text())]
    # an all-reduce of two ranks sends every byte once and has two latencies; small and large sizes
    # decide one constant each
    latency = min(seconds for _, seconds in times) / 2
    size, seconds = times[-1]
    return Link(bandwidth=size / max(seconds - 2 * latency, 1e-9), latency=latency), times


def time_collectives(rank: int, port: int, path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    times = []
    for size in SIZES:
        values = torch.ones(size // 4)
        seconds = []
        for _ in range(12):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(values)
            seconds.append(time.perf_counter() - began)
        times.append((size, min(seconds)))
    if rank == 0:
        Path(path).write_text(json.dumps(times))
    dist.destroy_process_group()


def fitted_rows(link: Link, times: Sequence[tuple[int, float]]) -> list[tuple[object, ...]]:
    return [
        (size, seconds * 1e3, (size / link.bandwidth + 2 * link.latency) * 1e3)
        for size, seconds in times
    ]


def make_scenes(folder: Path) -> Path:
    prepare = [sys.executable, "-m", "pipelines.prepare"]
    counts = ["--num-train", "60", "--num-val", "2", "--num-zeroshot", "2"]
    for words in (
        ["scenes", "--out", str(folder / "coco"), *counts],
        ["coco", "--root", str(folder / "coco"), "--out", str(folder / "shards")],
    ):
        subprocess.run([*prepare, *words], cwd=REPOSITORY, check=True, capture_output=True)
    return folder / "shards"


def run_config(shards: Path, batch: tuple[int, int]) -> RunConfig:
    return override(RECIPES["scenes"](), assignments(shards, batch))


def assignments(shards: Path, batch: tuple[int, int]) -> list[str]:
    return [
        *(f"data.{task}.shards={shards}" for task in ("segmentation", "image_text")),
        *(f"data.segmentation.batch_size={batch[0]}", f"data.image_text.batch_size={batch[1]}"),
        *("model.backbone.weights=random", "tracking.panels_every=0", "tracking.log_every=1"),
        *(f"steps={NUM_STEPS}", "schedule.warmup_steps=2", "parallel.num_threads=1"),
    ]


def measured_run(folder: Path, shards: Path, batch: tuple[int, int], *, ranks: int) -> dict:
    """Seconds of the usual step, memory of a rank, and the work that a step was.

    One rank shares the machine with another one, as each of two ranks does: what cores take from
    each other is the machine's rate, not communication.
    """
    names = [f"{ranks}x{batch[0]}"]
    names += [f"{names[0]}-beside"] if ranks == 1 else []
    running = [train(folder / name, shards, batch, ranks=ranks) for name in names]
    for name, process in zip(names, running, strict=True):
        if process.wait():
            raise SystemExit(f"scaling: training must end well; see {folder / name}.log")
    rows = read_metrics(folder / names[0])[NUM_WARM:]
    return {
        "work": counted_work(run_config(shards, batch)),
        "seconds": statistics.median(row["seconds_per_step"] for row in rows),
        "gib": max(row["memory_gib"] for row in rows),
    }


def train(
    out: Path, shards: Path, batch: tuple[int, int], *, ranks: int
) -> subprocess.Popen[bytes]:
    words = [word for change in assignments(shards, batch) for word in ("--set", change)]
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    run = ["-m", "pipelines.pretrain", "--output-dir", str(out), *words]
    with Path(f"{out}.log").open("wb") as log:
        return subprocess.Popen([*launcher, *run], cwd=REPOSITORY, stdout=log, stderr=log)


def counted_work(config: RunConfig) -> Work:
    losses = build_losses(config, torch.device("cpu"))
    stream = build_stream(config.data, rank=0, world_size=1, seed=config.seed)
    batches = next(iter(stream))[0]
    with contextlib.closing(stream):
        flops = forward_flops(losses, batches, config.seed)
        kept = activation_bytes(losses, batches, config.seed)
    return work_of(config, parameter_groups(losses.model, config.optimizer), flops, kept, 1)


def fitted_machine(link: Link, small: dict, large: dict) -> Machine:
    """A rank of this machine: rate and overhead from steps of two sizes."""
    operations = 3 * (large["work"].forward_flops - small["work"].forward_flops)
    flops = operations / (large["seconds"] - small["seconds"])
    return Machine(
        name="a core of this machine",
        flops=flops,
        memory_gib=1.0,
        # the optimizer is the same in both steps, so it is in the overhead
        memory_bandwidth=1e18,
        overhead=large["seconds"] - 3 * large["work"].forward_flops / flops,
        ranks_per_node=2,
        local=link,
        remote=link,
    )


def comparison(found: Prediction, large: dict, two: dict) -> list[tuple[object, ...]]:
    """What the model says of two ranks that share the large batch, beside what was seen."""
    seconds = found.step_seconds, two["seconds"]
    # of resident memory only the difference to one rank says something: torch itself takes most
    saved = (large["gib"] - two["gib"]) * GIB / 2**20
    predicted = large["work"].activation_bytes / 2 / 2**20
    return [
        ("seconds of a step, 2 ranks", *seconds, seconds[0] / seconds[1]),
        ("MiB that a second rank saves the first", predicted, saved, predicted / saved),
    ]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    main()
