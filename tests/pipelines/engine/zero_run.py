"""Many short runs in one process per rank, because starting DeepSpeed costs more than a run.

The model has what sharded optimizers get wrong: a head that only some micro-batches reach, a
table under two names that is also read from outside its module, a frozen layer, a scale of one
value, sizes that ranks cannot share evenly, and a trunk that runs twice before one backward.
"""

import dataclasses
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny_run import HEIGHT, WIDTH, loudness, tiny_config, tiny_stream
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.config import RunConfig
from pipelines.engine.deepspeed_backend import DeepSpeedBackend
from pipelines.engine.distributed import Group, read_place
from pipelines.engine.session import Request, run
from pipelines.engine.signals import StopFlag
from pipelines.engine.torch_backend import TorchBackend
from pipelines.errors import DataError, PipelineError
from pipelines.overrides import override
from xdecoder.batch import Batch
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.matching import NonFiniteCostError

DIM, WORDS = 7, 11
# a million values, of which the rest of the process has none
WIDE = 1000


class TrapModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3 * HEIGHT * WIDTH, DIM).requires_grad_(False)
        self.trunk = nn.Sequential(nn.Linear(DIM, 9), nn.GELU(), nn.Linear(9, DIM))
        self.text_encoder = nn.Embedding(WORDS, DIM)
        self.tied = self.text_encoder
        self.norm = nn.LayerNorm(DIM)
        self.rare = nn.Linear(DIM, 3)
        self.logit_scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.trunk(self.frozen(images.flatten(1))))


class TrapLosses(nn.Module):
    """is_divided: only rank 0 trains the rare head, which no sharded optimizer survives.

    unmatched: beginning of the keys that rank 1 cannot match.
    tasks: those of `image_text` and `segmentation` that are trained; empty: both, as one.
    """

    tasks = ""
    unmatched = ""

    def __init__(self, *, is_divided: bool) -> None:
        super().__init__()
        self.model = TrapModel()
        self.is_divided = is_divided

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        return {"images": float(sum(len(batch.keys) for batch in batches))}

    def forward(
        self,
        batches: Sequence[Batch],
        draws: UniformSource,
        counts: Mapping[str, float] | None = None,
    ) -> dict[str, Tensor]:
        (batch,) = batches
        words = torch.tensor([int(caption) for caption in batch.captions])
        features, mirrored = self.model(batch.images), self.model(batch.images.flip(3))
        similarity = features @ self.model.tied.weight.t() * self.model.logit_scale
        terms = {
            "image_text/class/0": F.cross_entropy(similarity.float(), words),
            "image_text/match/0": (mirrored - self.model.text_encoder(words)).square().mean(),
        }
        is_mine = not self.is_divided or dist.get_rank() == 0
        # the first micro-batch of a step that has several, and every other step of one
        if int(batch.captions[0]) % 2 == 0 and is_mine:
            terms["image_text/rare/1"] = self.model.rare(features).square().mean()
        if self.tasks:
            terms["segmentation/class/0"] = terms.pop("image_text/class/0")
            is_asked = self.tasks.split()
            terms = {name: term for name, term in terms.items() if name.split("/")[0] in is_asked}
        terms = {name: term * loudness(batch) for name, term in terms.items()}
        if self.unmatched and batch.keys[0].startswith(self.unmatched):
            raise NonFiniteCostError("match: costs must be finite.", terms)
        return terms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One run: its folder, what it changes, where it goes on from, which trap it springs."""

    folder: str
    assignments: tuple[str, ...] = ()
    resume: str = "auto"
    trap: str = ""


def trap_losses_of(case: Case) -> Any:
    def make(_config: RunConfig, _device: torch.device) -> Any:
        losses = TrapLosses(is_divided=case.trap == "divided").train()
        if case.trap.startswith("tasks "):
            losses.tasks = case.trap.removeprefix("tasks ")
        if case.trap.startswith("unmatched "):
            losses.unmatched = f"shard{case.trap.removeprefix('unmatched ')}/1-"
        if case.trap == "scalar":
            losses.model.logit_scale = nn.Parameter(torch.ones(()))
        if case.trap == "large":
            wide = nn.Sequential(nn.Linear(DIM, WIDE), nn.Linear(WIDE, WIDE), nn.Linear(WIDE, DIM))
            losses.model.trunk = wide
        if case.trap == "channels_last":
            losses.model.conv = nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)
        return losses

    return make


def stream_of(case: Case) -> Any:
    def stream(*arguments: Any, **options: Any) -> Iterator[Any]:
        for (batch,), state in tiny_stream(*arguments, **options):
            is_other = case.trap == "other_tasks" and dist.get_rank() == 1
            if case.trap == f"killed at {state['index']}":
                raise DataError("killed")
            yield (batch, batch) if is_other else (batch,), state

    return stream


def live_bytes() -> int:
    """Of all tensors of this process, shared storages once."""
    tensors = [found for found in gc.get_objects() if isinstance(found, Tensor)]
    # a gradient that nobody asked for has no object of its own
    gradients = [found.grad for found in tensors if found.is_leaf and found.grad is not None]
    storages = {
        found.untyped_storage().data_ptr(): found.untyped_storage().nbytes()
        for found in tensors + gradients
    }
    return sum(storages.values())


@contextmanager
def measuring(case: Case, rank: int) -> Iterator[None]:
    """Write down the bytes of live tensors before the last step of a large case."""
    backends = (TorchBackend, DeepSpeedBackend) if case.trap == "large" else ()
    steps = {backend: backend.step for backend in backends}
    found: list[int] = []

    def step(backend: Any, factor: float) -> Tensor:
        gc.collect()
        found.append(live_bytes())
        return steps[type(backend)](backend, factor)

    before = live_bytes()
    for backend in backends:
        backend.step = step
    yield
    for backend, original in steps.items():
        backend.step = original
    if found:
        Path(case.folder, f"bytes.rank{rank}").write_text(str(found[-1] - before))


def main() -> None:
    cases = [Case(**case) for case in json.loads(sys.argv[1])]
    group = Group(read_place(os.environ), is_cuda=False)
    for case in cases:
        began = time.perf_counter()
        request = Request(
            resume=case.resume, make_losses=trap_losses_of(case), make_stream=stream_of(case)
        )
        config = override(tiny_config(case.folder), case.assignments)
        try:
            with measuring(case, group.place.rank):
                run(config, request, group=group, device=torch.device("cpu"), stop=StopFlag())
        except PipelineError as error:
            name = f"error.rank{group.place.rank}.txt"
            Path(case.folder, name).write_text(str(error))
        if group.place.is_main:
            print(f"{Path(case.folder).name} {time.perf_counter() - began:.2f} s", file=sys.stderr)
    group.close()


if __name__ == "__main__":
    main()
