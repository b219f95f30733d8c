"""Times every backend of deformable attention, and every peer that is importable.

    python benchmarks/bench_msda.py [--device cpu|cuda] [--json FILE] [--shapes m2f-512 ...]

Correctness comes first: each implementation is compared with float64 on the same inputs, and the
script stops before timing when one of ours is wrong. See harness.py for the JSON file.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import msda_peers
from benchmarks.harness import (
    Row,
    Timing,
    machine_folder,
    machine_info,
    peak_mb,
    print_table,
    relative_error,
    time_in_turn,
    write_json,
)
from benchmarks.msda_problems import NUM_HEADS, NUM_POINTS, SHAPES, Inputs, Shape, make_inputs
from kernels import fused_deformable_attention, multi_scale_deformable_attention
from kernels.msda.backends import Call, candidates
from kernels.msda.reference import reference_attention, reference_fused_attention

OP = "msda"
# every implementation of ours may be wrong by this much, or by twice what the reference is
ERROR_BOUND = 1e-5
# bytes/s that one core reads from DRAM, and gathers from L2, on the processor of the study;
# memory bandwidth and rows/s of an H100 (shared/specs/kernels.md, section 3)
BOUNDS = {"cpu": (39e9, 104e9), "cuda": (3.35e12, 132 * 1.755e9)}


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """A callable on `Inputs`, and the leaves whose gradients its backward makes."""

    name: str
    run: Callable[[Inputs], Tensor]
    is_ours: bool
    is_fused: bool = False


def implementations(
    shape: Shape, dtype: torch.dtype, device: str, *, with_compile: bool
) -> list[Implementation]:
    """Ours that can run this problem, and the peers that can be imported."""
    found = []
    call = Call(
        device=torch.device(device),
        dtype=dtype,
        num_pixels=shape.num_pixels,
        num_heads=NUM_HEADS,
        head_dim=shape.head_dim,
        num_levels=len(shape.level_sizes_hw),
        num_points=NUM_POINTS,
        is_deterministic=False,
    )
    for name in [candidate.name for candidate in candidates(call) if candidate.why_not is None]:
        found.append(Implementation(name=name, run=_ours(name), is_ours=True))
        fused = Implementation(
            name=f"fused-{name}", run=_ours_fused(name), is_ours=True, is_fused=True
        )
        found.append(fused)
    for name, run in msda_peers.available(device, with_compile=with_compile).items():
        found.append(Implementation(name=name, run=_peer(run), is_ours=False))
    return found


def _ours(backend: str) -> Callable[[Inputs], Tensor]:
    return lambda i: multi_scale_deformable_attention(
        i.value, i.level_sizes_hw, i.points_xy01, i.weights, backend=backend
    )


def _ours_fused(backend: str) -> Callable[[Inputs], Tensor]:
    return lambda i: fused_deformable_attention(
        i.value, i.level_sizes_hw, i.reference, i.offsets, i.logits, backend=backend
    )


def _peer(run: msda_peers.Peer) -> Callable[[Inputs], Tensor]:
    return lambda i: run(i.value, i.level_sizes_hw, i.points_xy01, i.weights)


def leaves_of(inputs: Inputs, implementation: Implementation) -> list[Tensor]:
    """The tensors whose gradients the backward pass of `implementation` computes."""
    if implementation.is_fused:
        return [inputs.value, inputs.offsets, inputs.logits]
    return [inputs.value, inputs.points_xy01, inputs.weights]


def exact_results(inputs: Inputs, *, is_fused: bool) -> list[Tensor]:
    """Output and gradients of value and weights (or logits) in float64, of the same inputs.

    Gradients of points jump where a point crosses a pixel centre, which rounding decides; the
    tests check them away from there.
    """
    names = ("reference", "offsets", "logits") if is_fused else ("points_xy01", "weights")
    function = reference_fused_attention if is_fused else reference_attention
    images = []
    for i in range(inputs.value.shape[0]):
        value, *samples = [
            getattr(inputs, name)[i : i + 1].detach().double() for name in ("value", *names)
        ]
        leaves = [value.requires_grad_(), samples[-1].requires_grad_()]
        output = function(value, inputs.level_sizes_hw, *samples)
        grads = torch.autograd.grad(output, leaves, inputs.grad_output[i : i + 1].double())
        images.append([output.detach(), *grads])
    return [torch.cat(parts) for parts in zip(*images, strict=True)]


def errors_of(implementation: Implementation, inputs: Inputs, exact: list[Tensor]) -> list[float]:
    """Relative errors of the output and of the gradients of value and weights."""
    leaves = leaves_of(inputs, implementation)
    output = implementation.run(inputs)
    grads = torch.autograd.grad(output, leaves, inputs.grad_output)
    results = (output, grads[0], grads[-1])
    return [relative_error(one, other) for one, other in zip(results, exact, strict=True)]


def is_right(implementation: Implementation, errors: dict[str, list[float]]) -> bool:
    """Whether no error exceeds the bound, or twice that of the reference in the same dtype."""
    reference = errors["fused-reference" if implementation.is_fused else "reference"]
    return all(
        error <= max(ERROR_BOUND, 2 * allowed)
        for error, allowed in zip(errors[implementation.name], reference, strict=True)
    )


def forward(implementation: Implementation, inputs: Inputs) -> Callable[[], Tensor]:
    """A call that runs the forward pass alone."""

    def call() -> Tensor:
        with torch.no_grad():
            return implementation.run(inputs)

    return call


def forward_backward(implementation: Implementation, inputs: Inputs) -> Callable[[], object]:
    """A call that runs the forward pass and makes all gradients."""
    leaves = leaves_of(inputs, implementation)

    def call() -> object:
        return torch.autograd.grad(implementation.run(inputs), leaves, inputs.grad_output)

    return call


def bench_shape(
    shape: Shape, dtype: torch.dtype, arguments: argparse.Namespace, threads: int
) -> list[Row]:
    """Check, time and print one shape at one dtype and number of threads."""
    device = arguments.device
    torch.set_num_threads(threads)
    inputs = make_inputs(shape, dtype, device)
    found = implementations(shape, dtype, device, with_compile=arguments.compile)
    exact = {fused: exact_results(inputs, is_fused=fused) for fused in (False, True)}
    errors = {one.name: errors_of(one, inputs, exact[one.is_fused]) for one in found}
    wrong = {
        one.name: errors[one.name] for one in found if one.is_ours and not is_right(one, errors)
    }
    if wrong:
        raise SystemExit(f"{shape.name} {dtype}: wrong results, nothing is timed: {wrong}")
    rows = []
    for pass_, make in (("forward", forward), ("forward_backward", forward_backward)):
        calls = {one.name: make(one, inputs) for one in found}
        timings = time_in_turn(calls, device=device, budget_s=arguments.budget)
        peaks = {name: peak_mb(call, device=device) for name, call in calls.items()}
        worst = {
            name: errors[name][0] if pass_ == "forward" else max(errors[name]) for name in calls
        }
        for name, timing in timings.items():
            row = Row(
                op=OP,
                shape=shape.name,
                dtype=str(dtype).removeprefix("torch."),
                threads=threads,
                pass_=pass_,
                implementation=name,
                ms=timing.median_ms,
                rel_error=worst[name],
                peak_mb=peaks[name],
            )
            rows.append(row)
        print_result(shape, dtype, threads, pass_, found, timings, worst, peaks, device)
    return rows


def print_result(
    shape: Shape, dtype: torch.dtype, threads: int, pass_: str,
    found: Sequence[Implementation], timings: dict[str, Timing], errors: dict[str, float],
    peaks: dict[str, float | None], device: str,
) -> None:  # fmt: skip
    """One table: milliseconds, ratio to the best peer, shares of the bounds, error, memory."""
    peers = {one.name: timings[one.name].median_ms for one in found if not one.is_ours}
    best = min(peers, key=lambda name: peers[name], default=None)
    memory_ms, gather_ms = bounds_ms(shape, dtype, threads, device)
    lines = []
    for one in found:
        timing = timings[one.name]
        # the bounds are those of the forward pass
        is_forward = pass_ == "forward"
        lines.append(
            (
                one.name,
                timing.median_ms,
                timing.spread_ms,
                timing.best_cpu_ms,
                peers[best] / timing.median_ms if best else None,
                f"{100 * memory_ms / timing.median_ms:.0f}%" if is_forward else None,
                f"{100 * gather_ms / timing.median_ms:.0f}%" if is_forward else None,
                errors[one.name],
                peaks[one.name],
                timing.num_runs,
            )
        )
    print(f"\n{shape.name} {dtype} threads={threads} {pass_} (best peer: {best})")
    header = ("implementation", "ms", "iqr", "best cpu ms", "x best peer")
    print_table((*header, "of memory", "of gather", "error", "peak MB", "runs"), lines)


def bounds_ms(shape: Shape, dtype: torch.dtype, threads: int, device: str) -> tuple[float, float]:
    """Least milliseconds of forward: every byte once from memory, and every gathered row."""
    num_queries = shape.num_queries or shape.num_pixels
    channels = NUM_HEADS * shape.head_dim
    num_samples = num_queries * NUM_HEADS * len(shape.level_sizes_hw) * NUM_POINTS
    # points and weights are float32: 12 bytes per sample
    moved = (shape.num_pixels + num_queries) * channels * dtype.itemsize + 12 * num_samples
    rows = 4 * num_samples
    memory_rate, gather_rate = BOUNDS[device]
    if device == "cpu":
        gathered = rows * shape.head_dim * dtype.itemsize / (gather_rate * threads)
    else:
        gathered = rows / gather_rate
    images = shape.num_images * 1e3
    return images * moved / memory_rate, images * gathered


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, default=None, help="default: benchmarks/results/...")
    parser.add_argument("--shapes", nargs="+", choices=("all", *(s.name for s in SHAPES)))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="+", type=int, help="default on CPU: 1 and 2")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds per implementation")
    parser.add_argument("--compile", action="store_true", help="also torch.compile of transformers")
    return parser.parse_args()


def chosen_shapes(arguments: argparse.Namespace) -> list[Shape]:
    """The shapes asked for; on the CPU the quick ones unless told otherwise."""
    if arguments.shapes is None:
        return [shape for shape in SHAPES if arguments.device == "cuda" or shape.on_cpu]
    return [s for s in SHAPES if "all" in arguments.shapes or s.name in arguments.shapes]


def main() -> None:
    arguments = parse_arguments()
    device = arguments.device
    threads = arguments.threads or ([1, 2] if device == "cpu" else [torch.get_num_threads()])
    print(machine_info(device))
    print(f"peers: {msda_peers.describe(device)}")
    rows: list[Row] = []
    path = arguments.json or machine_folder(device) / "msda.json"
    for shape in chosen_shapes(arguments):
        for dtype in arguments.dtypes:
            for count in threads:
                rows += bench_shape(shape, getattr(torch, dtype), arguments, count)
                write_json(path, device, rows)
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
