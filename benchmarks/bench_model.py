"""The whole model against the same weights run the original way: forward, training, captions.

    python benchmarks/bench_model.py --threads 2          full-size Focal-T at 1024 x 1024
    python benchmarks/bench_model.py --quick              a small model, to see that the script runs

Both are compared first, and nothing is timed unless they agree. They run in turn in this process;
peak memory is that of one call in a process of its own. Weights are random. A training step is
losses and gradients of a segmentation batch; both take our losses, which read points of features
and no full-size masks, and that favours the original.
"""

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Row, machine_folder, peak_mb, print_table, write_json
from original_model import original_caption, original_of
from torch import Tensor

from xdecoder.batch import PhraseTargets, SegmentationBatch, SegmentTargets, Vocabulary
from xdecoder.build import build_model
from xdecoder.caption_stream import CaptionStream
from xdecoder.config import ModelConfig, TextConfig, released
from xdecoder.losses.draws import Draws
from xdecoder.model import XDecoder
from xdecoder.outputs import ImageFeatures
from xdecoder.queries import QuerySet
from xdecoder.tasks import LossConfig, build_tasks

# of the outputs in float32, and of everything in float64
_TOLERANCE, _EXACT = 1e-4, 1e-9
_NUM_SEGMENTS = 20
Call = Callable[[], object]


class Problem:
    """A model, its original twin, an image and a batch, all drawn from one seed."""

    def __init__(self, *, is_quick: bool, side: int) -> None:
        torch.manual_seed(0)
        self.side = side
        self.ours = build_model(_config(is_quick), has_initial_weights=False)
        _spread_masks(self.ours)
        self.original = original_of(self.ours)
        self.images = torch.rand(1, 3, side, side) * 255
        self.batch = _batch(self.images, 10 if is_quick else 133)
        self.task = build_tasks(LossConfig())[0]

    def model(self, name: str) -> XDecoder:
        return self.ours if name == "ours" else self.original

    @torch.no_grad()
    def forward(self, name: str) -> Tensor:
        """Embeddings, mask embeddings and masks of the last prediction, joined."""
        output = self.model(name).eval()(self.images, QuerySet())
        last = output.layers[-1]
        masks = output.mask_logits(-1, output.layout.objects)
        return torch.cat([part.flatten() for part in (last.embeddings, masks)])

    def train(self, name: str) -> Tensor:
        """The loss; gradients are left in the shared parameters."""
        model = self.model(name).train()
        for parameter in self.ours.parameters():
            parameter.grad = None
        terms = self.task.losses(model, self.batch, Draws(0))
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        return loss.detach()

    def gradients(self, name: str) -> Tensor:
        self.train(name)
        return torch.cat(
            [p.grad.flatten().clone() for p in self.ours.parameters() if p.grad is not None]
        )

    @torch.no_grad()
    def features(self, name: str) -> ImageFeatures:
        return self.model(name).eval().encode_images(self.images)

    @torch.no_grad()
    def caption(self, name: str, features: ImageFeatures, num_tokens: int) -> list[list[int]]:
        """Greedy tokens, going on after an end so that both take the same number of steps."""
        if name == "original":
            return original_caption(self.original.eval(), features, num_tokens)
        stream = CaptionStream(self.ours.eval(), features, max_tokens=num_tokens)
        token = torch.tensor([self.ours.tokenizer.start_id])
        tokens = []
        for _ in range(num_tokens):
            token = stream.step(token).argmax(-1)
            tokens.append(int(token))
        return [tokens]


def _config(is_quick: bool) -> ModelConfig:
    config = released("focal_t")
    if is_quick:
        return dataclasses.replace(
            config,
            dim=64,
            backbone=dataclasses.replace(config.backbone, drop_path=0.0),
            text=TextConfig(num_layers=2, context_length=40, num_merges=2000),
        )
    # random branches are dropped in training, which would hide differences
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, drop_path=0.0))


@torch.no_grad()
def _spread_masks(model: XDecoder) -> None:
    """Mask embeddings of random weights are nearly equal; make masks differ as trained ones do."""
    for layer in model.decoder.heads.mask_mlp.layers:
        torch.nn.init.orthogonal_(layer.weight, gain=1.5)
    torch.nn.init.normal_(model.decoder.query_content.weight)


def _batch(images: Tensor, num_classes: int) -> SegmentationBatch:
    side = images.shape[2]
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(_NUM_SEGMENTS, side, side, dtype=torch.bool)
    for mask in masks:
        top, left = torch.randint(0, side * 3 // 4, (2,), generator=generator).tolist()
        height, width = torch.randint(side // 16, side // 4, (2,), generator=generator).tolist()
        mask[top : top + height, left : left + width] = True
    names = tuple(f"class {index}" for index in range(num_classes))
    return SegmentationBatch(
        keys=("random",),
        images=images,
        valid_sizes_hw=((side, side),),
        vocabulary=Vocabulary(names=names, is_thing=(True,) * num_classes),
        segments=(
            SegmentTargets(
                masks=masks,
                class_ids=torch.randint(0, num_classes, (_NUM_SEGMENTS,), generator=generator),
            ),
        ),
        phrases=(PhraseTargets(phrases=("a thing",), masks=masks[:1]),),
    )


def rms_error(result: Tensor, exact: Tensor) -> float:
    """Root mean square of the error as a share of that of the values."""
    difference = (result.double() - exact.double()).square().mean().sqrt()
    return float(difference / exact.double().square().mean().sqrt())


def check_algebra() -> None:
    """A small model in float64: forward pass and all gradients of both must be the same.

    In float32 a mask logit that is zero up to rounding may fall on either side, and then one key
    more or less moves gradients by far more than rounding does.

    Raises: AssertionError where they are not.
    """
    problem = Problem(is_quick=True, side=160)
    problem.ours.double()
    problem.original.double()
    names = ("ours", "original")
    for call in (problem.forward, problem.gradients):
        error = rms_error(*(call(name) for name in names))
        print(f"float64, small model, {call.__name__}: {error:.1e}", flush=True)
        assert error <= _EXACT, f"{call.__name__}: relative error {error:.1e} in float64"


def check(problem: Problem, num_tokens: int) -> dict[str, float]:
    """Errors of ours against the original in float32: outputs, loss, and equal captions.

    Raises: AssertionError where they do not agree.
    """
    losses = [problem.train(name) for name in ("ours", "original")]
    errors = {
        "forward": rms_error(problem.forward("ours"), problem.forward("original")),
        "training step": rms_error(*losses),
    }
    features = problem.features("ours")
    tokens = [problem.caption(name, features, num_tokens) for name in ("ours", "original")]
    assert tokens[0] == tokens[1], f"captions differ: {tokens}"
    errors["caption"] = 0.0
    for name, error in errors.items():
        print(f"float32, {name}: {error:.1e}", flush=True)
        assert error <= _TOLERANCE, f"{name}: relative error {error:.1e}"
    return errors


def seconds(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of calls that run one after another in rounds."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return taken


def peak_in_own_process(arguments: argparse.Namespace, pass_: str, name: str) -> float:
    """MB that one call needs on top of the model."""
    command = [sys.executable, __file__, "--peak", f"{pass_}:{name}"]
    command += ["--threads", str(arguments.threads), "--side", str(arguments.side)]
    command += ["--quick"] if arguments.quick else []
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def print_peak(problem: Problem, request: str) -> None:
    pass_, _, name = request.partition(":")
    features = problem.features(name) if pass_ == "caption" else None
    calls: dict[str, Call] = {
        "forward": lambda: problem.forward(name),
        "training step": lambda: problem.train(name),
        # memory does not grow with the number of tokens
        "caption": lambda: problem.caption(name, features, 2),
    }
    print(peak_mb(calls[pass_], device="cpu"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--side", type=int, help="pixels of the square image; default: 1024")
    parser.add_argument("--rounds", type=int, default=3, help="of forward and training")
    parser.add_argument("--tokens", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="a small model at 192 x 192")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.side = arguments.side or (192 if arguments.quick else 1024)
    return arguments


def bench(problem: Problem, arguments: argparse.Namespace) -> list[Row]:
    errors = check(problem, 3)
    names = ("ours", "original")
    features = problem.features("ours")
    passes: dict[str, dict[str, Call]] = {
        "forward": {name: lambda name=name: problem.forward(name) for name in names},
        "training step": {name: lambda name=name: problem.train(name) for name in names},
        "caption": {
            name: lambda name=name: problem.caption(name, features, arguments.tokens)
            for name in names
        },
        "shared trunk and pixel decoder": {
            name: lambda name=name: problem.features(name) for name in names
        },
    }
    rows, lines = [], []
    for pass_, calls in passes.items():
        print(f"{pass_} ...", flush=True)
        taken = seconds(calls, 1 if pass_ == "caption" else arguments.rounds)
        best = {name: sorted(times)[len(times) // 2] for name, times in taken.items()}
        for name in names:
            has_peak = pass_ in errors
            peak = peak_in_own_process(arguments, pass_, name) if has_peak else None
            row = Row(
                op=f"model, {arguments.tokens} tokens" if pass_ == "caption" else "model",
                shape=f"focal_t-{arguments.side}x{arguments.side}",
                dtype="float32",
                threads=torch.get_num_threads(),
                pass_=pass_,
                implementation=name,
                ms=1e3 * best[name],
                rel_error=errors.get(pass_) if name == "ours" else 0.0,
                peak_mb=peak,
            )
            rows.append(row)
            lines.append([pass_, name, best[name], best[name] / best["ours"], peak])
    print_table(("pass", "implementation", "s", "x ours", "peak MB"), lines)
    return rows


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if not arguments.peak:
        check_algebra()
    problem = Problem(is_quick=arguments.quick, side=arguments.side)
    if arguments.peak:
        print_peak(problem, arguments.peak)
        return
    rows = bench(problem, arguments)
    path = arguments.json or machine_folder("cpu") / "model.json"
    if arguments.quick and not arguments.json:
        print("a quick run writes no file without --json")
        return
    write_json(path, "cpu", rows)
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
