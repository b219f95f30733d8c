"""Before a run under DeepSpeed: does it compute here what plain PyTorch computes?

A model of a few hundred values with everything that DeepSpeed was seen to get wrong in silence
takes a few steps under both, at the stage, with the offload and the accumulation of the run: a
head that only some micro-batches reach, tied weights, a frozen layer, a trunk that runs twice, an
answer that is a dataclass.
It costs a second or two, and tells of another version of DeepSpeed, or of a broken installation,
before the first step of the run does.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.config import OptimizerConfig, RunConfig
from pipelines.engine.backend import Backend, TrainedModule
from pipelines.engine.deepspeed_backend import DeepSpeedBackend
from pipelines.engine.distributed import Group
from pipelines.engine.optim import parameter_groups
from pipelines.engine.torch_backend import TorchBackend
from pipelines.errors import BackendUnavailable
from xdecoder.batch import Batch, ImageTextBatch
from xdecoder.losses.draws import Draws, UniformSource

_log = logging.getLogger(__name__)
_NUM_STEPS = 4
# gradient norms on both sides of the clipping norm, and above the 1.0 that DeepSpeed would clip at:
# Adam does not see a factor that all of its gradients have
_LOSS_FACTOR, _CLIP_NORM = 20.0, 150.0
# every other one reaches the rare head, so steps of two micro-batches do in their first
_DIM, _WORDS, _SIZE_HW = 5, 7, (3, 4)
# float32 sums in another order, through a few steps of AdamW; the errors that were seen are of 1e-2
_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class _Answer:
    scores: Tensor


class _Scorer(nn.Module):
    """Answers with a dataclass, and reads weights that are its own and another module's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(_DIM))
        self.shifts = nn.Embedding(1, _DIM)

    def forward(self, features: Tensor, words: Tensor) -> _Answer:
        return _Answer((features * self.weight + self.shifts.weight[0]) @ words.t())


class _ProbeModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3 * _SIZE_HW[0] * _SIZE_HW[1], _DIM).requires_grad_(False)
        self.trunk = nn.Linear(_DIM, _DIM)
        self.words = nn.Embedding(_WORDS, _DIM)
        self.tied = self.words
        self.scorer = _Scorer()
        self.rare = nn.Linear(_DIM, 3)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(self.frozen(images.flatten(1))).tanh()


class _ProbeLosses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = _ProbeModel()

    def forward(
        self,
        batches: Sequence[Batch],
        draws: UniformSource,
        counts: Mapping[str, float] | None = None,
    ) -> dict[str, Tensor]:
        (batch,) = batches
        words = torch.tensor([int(word) for word in batch.keys], device=batch.images.device)
        features, mirrored = self.model(batch.images), self.model(batch.images.flip(3))
        found = self.model.scorer(features, self.model.tied.weight)
        scores = found.scores * self.model.scale
        terms = {
            "image_text/probe/0": F.cross_entropy(scores, words),
            "image_text/probe/1": (mirrored - self.model.words(words)).square().mean(),
        }
        if int(batch.keys[0]) % 2 == 0:
            terms["image_text/probe/2"] = self.model.rare(features).square().mean() * 10
        return terms


def check_deepspeed(config: RunConfig, *, group: Group, device: torch.device) -> None:
    """Return if a few steps of a small model come out as plain PyTorch computes them.

    Raises:
        BackendUnavailable: they do not; the message has the first step that differs.
    """
    parallel = dataclasses.replace(config.parallel, keep_whole_below=0, precision="fp32")
    optimizer = OptimizerConfig(learning_rate=1e-2, clip_norm=_CLIP_NORM)

    def probe() -> tuple[TrainedModule, tuple]:
        torch.manual_seed(11)
        losses = _ProbeLosses().to(device).train()
        return TrainedModule(losses), parameter_groups(losses.model, optimizer)  # type: ignore[arg-type]

    with torch.random.fork_rng():
        module, groups = probe()
        plain = TorchBackend(
            module, groups, optimizer, place=group.place, accumulation=parallel.accumulation
        )
        module, groups = probe()
        is_cuda = device.type == "cuda"
        zero = DeepSpeedBackend(module, groups, optimizer, parallel=parallel, is_cuda=is_cuda)
        curves = [
            _curve(backend, parallel.accumulation, group, device) for backend in (plain, zero)
        ]
    for step, (expected, found) in enumerate(zip(*curves, strict=True), 1):
        if not all(abs(b - a) <= _TOLERANCE * abs(a) for a, b in zip(expected, found, strict=True)):
            raise BackendUnavailable(
                f"parallel.backend=deepspeed with zero_stage={parallel.zero_stage} must compute "
                f"what PyTorch computes; in step {step} of a small model, loss and gradient norm "
                f"are {found[0]:.6g} and {found[1]:.6g} instead of {expected[0]:.6g} and "
                f"{expected[1]:.6g}. Install the version of DeepSpeed that the extra `train` was "
                "tested with, set parallel.backend=torch, or, at your own risk, "
                "parallel.self_check=false."
            )
    _log.info("DeepSpeed computes %d steps of a small model as PyTorch does", _NUM_STEPS)


def _curve(
    backend: Backend, accumulation: int, group: Group, device: torch.device
) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, averaged over ranks."""
    curve = []
    for step in range(_NUM_STEPS):
        total = 0.0
        for micro in range(accumulation):
            index = step * accumulation + micro
            draws = Draws(index, group.place.rank, 5)
            batch = ImageTextBatch(
                keys=(str(2 * draws.choice(3) + index % 2), str(draws.choice(_WORDS))),
                images=draws.uniform(2, 3, *_SIZE_HW).to(device),
                valid_sizes_hw=(_SIZE_HW,) * 2,
                captions=("", ""),
            )
            terms = backend.forward((batch,), draws, None)
            loss = torch.stack(list(terms.values())).sum() * _LOSS_FACTOR
            backend.backward(loss)
            total += loss.item() / accumulation
        losses = group.gather(total)
        curve.append((sum(losses) / len(losses), backend.step(1.0).item()))
    return curve
