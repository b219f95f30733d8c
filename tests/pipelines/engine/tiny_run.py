"""A run of a few thousand parameters through the real session; tests start it as a process.

The model has everything that makes resuming hard: dropout from the global generator, draws, a
parameter that only some batches reach, tied names and a moving average.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.cli import main_of
from pipelines.config import (
    CheckpointConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
    TrackingConfig,
)
from pipelines.engine.distributed import Group, read_place
from pipelines.engine.session import Request, run
from pipelines.engine.signals import StopFlag
from pipelines.overrides import override
from xdecoder.batch import Batch, ImageTextBatch
from xdecoder.losses.draws import Draws, UniformSource

STOP = StopFlag()
HEIGHT, WIDTH, CHANNELS = 5, 7, 6


class TinyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3), nn.GELU(), nn.Flatten(), nn.Dropout(0.2)
        )
        self.text_encoder = nn.Embedding(11, CHANNELS)
        self.head = nn.Linear(CHANNELS * (HEIGHT - 2) * (WIDTH - 2), CHANNELS)
        self.norm = nn.LayerNorm(CHANNELS)
        self.rare = nn.Linear(CHANNELS, 2)
        self.tied = self.text_encoder


class TinyLosses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = TinyModel()

    def counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        return {"images": float(sum(len(batch.keys) for batch in batches))}

    def forward(
        self,
        batches: Sequence[Batch],
        draws: UniformSource,
        counts: Mapping[str, float] | None = None,
    ) -> dict[str, Tensor]:
        (batch,) = batches
        divisor = (counts or self.counts(batches))["images"]
        features = self.model.norm(self.model.head(self.model.backbone(batch.images)))
        words = [int(caption) for caption in batch.captions]
        words = self.model.text_encoder(torch.tensor(words))
        noise = draws.uniform(len(words), CHANNELS)
        terms = {
            "image_text/match/0": (features - words).square().mean(1).sum() / divisor,
            "image_text/match/1": (features * noise).abs().mean(1).sum() / divisor,
        }
        if int(batch.captions[0]) % 2:
            terms["image_text/rare/1"] = self.model.rare(features).square().mean(1).sum() / divisor
        return {name: term * loudness(batch) for name, term in terms.items()}


def loudness(batch: Batch) -> Tensor:
    """What a loss is multiplied by: exactly 1, or much more for images that are not in [0, 1]."""
    return batch.images.amax().clamp(min=1.0)


def tiny_stream(
    _config: object, *, rank: int, world_size: int, seed: int, state: dict[str, Any] | None = None
) -> Iterator[tuple[tuple[Batch, ...], dict[str, Any]]]:
    index = state["index"] if state else 0
    delay = float(os.environ.get("TINY_DELAY", "0"))
    poison = int(os.environ.get("TINY_POISON_STEP", "-1"))
    loud = os.environ.get("TINY_LOUD_STEPS", "").split(",")
    while True:
        time.sleep(delay)
        draws = Draws(seed, index, rank, 77)
        images = draws.uniform(2, 3, HEIGHT, WIDTH)
        if index == poison and rank == world_size - 1:
            images[0, 0, 0, 0] = float("nan")
        if str(index) in loud:
            images *= 1000
        # the same parity on every rank: all ranks run the same tasks
        first = 2 * draws.choice(5) + index % 2
        batch = ImageTextBatch(
            keys=tuple(f"shard{index}/{rank}-{place}" for place in range(2)),
            images=images,
            valid_sizes_hw=((HEIGHT, WIDTH),) * 2,
            captions=(str(first), str(draws.choice(11))),
        )
        index += 1
        yield (batch,), {"index": index}


def tiny_config(output_dir: str) -> RunConfig:
    return RunConfig(
        name="tiny",
        steps=12,
        output_dir=output_dir,
        optimizer=OptimizerConfig(learning_rate=1e-2, clip_norm=0.5, ema_decay=0.9),
        schedule=ScheduleConfig(warmup_steps=3),
        parallel=ParallelConfig(num_threads=1, device="cpu"),
        checkpoint=CheckpointConfig(every_steps=3),
        tracking=TrackingConfig(log_every=2),
    )


def tiny_losses(_config: RunConfig, device: torch.device) -> Any:
    return TinyLosses().to(device).train()


def tiny_verb(options: argparse.Namespace) -> int:
    config = override(tiny_config(options.output_dir), options.assignments)
    group = Group(read_place(os.environ), is_cuda=False)
    request = Request(resume=options.resume, make_losses=tiny_losses, make_stream=tiny_stream)
    code = run(config, request, group=group, device=torch.device("cpu"), stop=STOP)
    group.close()
    return int(code)


def main() -> int:
    STOP.install()
    parser = argparse.ArgumentParser()
    parser.add_argument("output_dir")
    parser.add_argument("--set", dest="assignments", action="append", default=[])
    parser.add_argument("--resume", default="auto")
    return main_of(tiny_verb, parser, None)


if __name__ == "__main__":
    sys.exit(main())
