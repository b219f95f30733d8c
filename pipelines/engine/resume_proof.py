"""A proof that a killed run goes on as if nothing had happened: run it, kill it, compare.

    straight   n steps, one process, no data workers
    resumed    k steps, SIGKILL, the rest; other numbers of data workers        bit for bit
    steady     as straight, with draws that do not depend on how batches are cut
    elastic    from a checkpoint of steady, with another number of ranks        but for summation

Every leg is a fork of this process, which has everything imported and has computed nothing.
"""

import hashlib
import json
import math
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.config import RunConfig
from pipelines.data.stream import build_stream
from pipelines.engine.checkpoint_files import read_tensors, step_of
from pipelines.engine.distributed import Group, read_place
from pipelines.engine.loop import Stream
from pipelines.engine.machine import choose_device
from pipelines.engine.session import Request, build_losses, run
from pipelines.engine.signals import StopFlag
from pipelines.errors import CheckpointError
from pipelines.tracking.jsonl import read_events, read_metrics
from xdecoder.batch import Batch
from xdecoder.losses.draws import UniformSource
from xdecoder.tasks.base import Counts
from xdecoder.tasks.config import LossConfig

MakeStream = Callable[..., Stream]
_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 900.0
# float32 sums in another order differ by 1e-7 of the loss, and by 1e-6 a dozen steps later; another
# sample, or moments that were lost, by 1e-3 and more
SUMMATION_ORDER = 1e-4
# irrational steps that fill the unit interval evenly; Source: Roberts, the R2 sequence
_STRIDES = (0.7548776662466927, 0.5698402909980532)


class SteadyDraws(UniformSource):
    """The same numbers for every image, mask and rank, so that no cut of a batch changes them."""

    def uniform(self, *shape: int) -> Tensor:
        """A pattern over the last axes, repeated over the first; one axis is a pattern itself."""
        count = shape[-2] if len(shape) > 1 else shape[0]
        places = torch.arange(1, count + 1, dtype=torch.float64)
        if len(shape) == 1:
            return (places * _STRIDES[0] % 1).float()
        strides = [_STRIDES[i % len(_STRIDES)] for i in range(shape[-1])]
        pattern = torch.stack([places * stride % 1 for stride in strides], dim=1).float()
        return pattern.expand(shape).contiguous()


class SteadyLosses(nn.Module):
    """The losses of a run under `SteadyDraws`."""

    def __init__(self, losses: Any) -> None:
        super().__init__()
        self.losses = losses

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self.losses.model

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """As the losses count."""
        return self.losses.counts(batches)

    def forward(
        self, batches: Sequence[Batch], draws: UniformSource, counts: Counts | None = None
    ) -> dict[str, Tensor]:
        return self.losses(batches, SteadyDraws(), counts)


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One start of a run: how many ranks and workers, and after which step it is killed."""

    folder: Path
    world_size: int = 1
    num_workers: int = 0
    is_steady: bool = False
    kill_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step of two runs side by side; `keys` by task, in the order of the global batch."""

    step: int
    keys: tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]]
    losses: tuple[float, float]

    @property
    def has_equal_keys(self) -> bool:
        """Whether both runs saw the same samples in the same order."""
        return self.keys[0] == self.keys[1]

    @property
    def difference(self) -> float:
        """Of the losses, relative to the first."""
        return abs(self.losses[1] / self.losses[0] - 1)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs over the steps that both took, and hashes of what they ended with."""

    title: str
    rows: tuple[Row, ...]
    hashes: Mapping[str, tuple[str, str]]
    tolerance: float
    has_resumed: bool = True

    def failures(self) -> list[str]:
        """What differs although it must not, in words."""
        failures = [] if self.has_resumed else ["the second run began anew and never resumed"]
        bad = [row.step for row in self.rows if not row.has_equal_keys]
        if bad:
            failures.append(f"sample keys differ from step {bad[0]} on")
        bad = [row.step for row in self.rows if not row.difference <= self.tolerance]
        if bad:
            worst = max(row.difference for row in self.rows)
            failures.append(f"losses differ from step {bad[0]} on, at most by {worst:.1e}")
        if self.tolerance == 0:
            failures += [
                f"{name} differs at the end"
                for name, (first, second) in self.hashes.items()
                if first != second
            ]
        return failures


def prove_resume(
    config: RunConfig,
    folder: Path,
    *,
    kill_at: int,
    world_size: int,
    make_stream: MakeStream = build_stream,
    on_leg: Callable[[str], None] = lambda _name: None,
) -> tuple[Comparison, ...]:
    """The runs side by side: resumed against straight, elastic against steady.

    config: of a short run with a checkpoint before `kill_at`; it keeps all of its checkpoints.
    on_leg: is told what runs now.

    Raises:
        CheckpointError: a leg failed; the message has the end of its log.
    """
    straight, cut = Leg(folder=folder / "straight"), Leg(folder=folder / "resumed")
    steady = Leg(folder=folder / "steady", is_steady=True)
    elastic = replace(steady, folder=folder / "elastic", world_size=world_size)

    def go(leg: Leg, name: str) -> None:
        on_leg(name)
        _run_leg(config, leg, make_stream)

    assert isinstance(config.losses, LossConfig)
    go(straight, f"straight: {config.steps} steps")
    go(replace(cut, num_workers=2, kill_at=kill_at), f"2 workers, killed after step {kill_at}")
    go(replace(cut, num_workers=1), "resumed with 1 worker")
    comparisons = [_compare("the same number of ranks", straight, cut, tolerance=0.0)]
    if world_size > 1:
        # this term contrasts images of one rank only, so it is another one for another world
        losses = replace(config.losses, retrieval_alignment=0.0)
        config = replace(config, losses=losses)
        go(steady, f"steady draws: {config.steps} steps")
        _cut_copy(steady.folder, elastic.folder, before=kill_at)
        go(elastic, f"resumed with {world_size} ranks")
        title = f"1 rank, then {world_size}"
        comparisons.append(_compare(title, steady, elastic, tolerance=SUMMATION_ORDER))
    return tuple(comparisons)


def _run_leg(config: RunConfig, leg: Leg, make_stream: MakeStream) -> None:
    leg.folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    children = [
        fork(partial(_train, config, leg, rank, port, make_stream), leg.folder / f"rank{rank}.log")
        for rank in range(leg.world_size)
    ]
    if leg.kill_at is not None:
        _wait_for_step(leg, leg.kill_at, children)
        for child in children:
            os.kill(child, signal.SIGKILL)
    expected = 0 if leg.kill_at is None else -signal.SIGKILL
    wait(children, expected=expected, name=leg.folder.name, log=leg.folder / "rank0.log")


def fork(work: Callable[[], int], log: Path) -> int:
    """The process id of a copy of this process that does `work`, says it to `log`, and exits."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        # nothing of the parent's, such as its own exit handlers, must run here
        os._exit(code)


def wait(children: Sequence[int], *, expected: int, name: str, log: Path) -> None:
    """Return once all forks have ended as expected; -9 means by SIGKILL.

    Raises:
        CheckpointError: one did not; the message has the end of its log.
    """
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(code != expected for code in codes):
        tail = "\n".join(log.read_text().splitlines()[-12:])
        raise CheckpointError(
            f"doctor: every process of {name} must end with {expected}; got {codes}. "
            f"The end of its log:\n{tail}"
        )


def _train(config: RunConfig, leg: Leg, rank: int, port: int, make_stream: MakeStream) -> int:
    place = read_place(_environment(leg.world_size, rank, port))
    device = choose_device(config.parallel, place)
    group = Group(place, is_cuda=device.type == "cuda")

    def losses(config: RunConfig, device: torch.device) -> Any:
        made = build_losses(config, device)
        return SteadyLosses(made) if leg.is_steady else made

    request = Request(make_losses=losses, make_stream=_recording(make_stream, leg.folder, rank))
    data = replace(config.data, num_workers=leg.num_workers)
    config = replace(config, output_dir=str(leg.folder), data=data)
    return int(run(config, request, group=group, device=device, stop=StopFlag().install()))


def _environment(world_size: int, rank: int, port: int) -> dict[str, str]:
    if world_size == 1:
        return {}
    return {
        **{"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }


def _recording(make_stream: MakeStream, folder: Path, rank: int) -> MakeStream:
    """The stream, with the keys of every step written down as it is handed out."""

    def make(*arguments: Any, **options: Any) -> Iterator[Any]:
        # counted here: a stream that starts again would count its own steps from 1 again
        first = (options.get("state") or {}).get("step", 0) + 1
        with (folder / f"samples.rank{rank}.jsonl").open("a", buffering=1) as file:
            items = make_stream(*arguments, **options)
            for step, (batches, state) in enumerate(items, first):
                keys = {batch.task: list(batch.keys) for batch in batches}
                file.write(json.dumps({"step": step, "keys": keys}) + "\n")
                yield batches, state

    return make


def _wait_for_step(leg: Leg, step: int, children: Sequence[int]) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    latest = leg.folder / "checkpoints" / "latest"
    while time.monotonic() < end:
        # a run that is killed before its first checkpoint begins anew, which proves nothing
        if latest.is_symlink() and any(row["step"] >= step for row in read_metrics(leg.folder)):
            return
        if any(
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) for child in children
        ):
            return
        time.sleep(_POLL_SECONDS)


def _cut_copy(source: Path, target: Path, *, before: int) -> None:
    """A run folder as it was when its last checkpoint not after step `before` was written."""
    shutil.copytree(source, target, symlinks=True)
    (target / "checkpoints" / "latest").unlink()
    for checkpoint in (target / "checkpoints").glob("step_*"):
        if step_of(checkpoint) > before:
            shutil.rmtree(checkpoint)
    for samples in target.glob("samples.*"):
        samples.unlink()


def _compare(title: str, first: Leg, second: Leg, *, tolerance: float) -> Comparison:
    losses = [
        # a step that was left out has no loss
        {row["step"]: row.get("loss", math.inf) for row in read_metrics(leg.folder)}
        for leg in (first, second)
    ]
    keys = [_global_keys(leg.folder) for leg in (first, second)]
    rows = tuple(
        Row(
            step=step,
            keys=(keys[0].get(step, {}), keys[1].get(step, {})),
            losses=(losses[0][step], losses[1].get(step, float("nan"))),
        )
        for step in sorted(losses[0].keys() & keys[1].keys())
    )
    hashes = [_hashes(leg.folder) for leg in (first, second)]
    return Comparison(
        title=title,
        rows=rows,
        hashes={name: (hashes[0][name], hashes[1][name]) for name in hashes[0]},
        tolerance=tolerance,
        has_resumed=any(event["event"] == "resume" for event in read_events(second.folder)),
    )


def _global_keys(folder: Path) -> dict[int, dict[str, list[str]]]:
    """Keys by step and task; the parts of all ranks in order are the global batch."""
    steps: dict[int, dict[str, list[str]]] = {}
    for path in sorted(folder.glob("samples.rank*.jsonl")):
        # of two rows for a step the later one: the step was taken again
        own = {row["step"]: row["keys"] for row in map(json.loads, path.open())}
        for step, keys in own.items():
            for task, values in keys.items():
                steps.setdefault(step, {}).setdefault(task, []).extend(values)
    return steps


def _hashes(folder: Path) -> dict[str, str]:
    """Of the names and bytes of all tensors at the end of a run."""
    hashes = {}
    for name in ("model", "optimizer", "ema"):
        path = folder / "checkpoints" / "latest" / f"{name}.safetensors"
        if not path.is_file():
            continue
        digest = hashlib.sha256()
        for key, tensor in sorted(read_tensors(path).items()):
            digest.update(key.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        hashes[name] = digest.hexdigest()
    return hashes


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
