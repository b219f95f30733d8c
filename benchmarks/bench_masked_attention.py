"""Times masked cross-attention: mask building, attention, the layer step, nine layers.

    python benchmarks/bench_masked_attention.py [--device cpu|cuda] [--json FILE] [--levels 64x64]

Correctness comes first: fused attention is compared with float64 under the same mask, and the two
routes to a mask may differ in one bit of a thousand; the script stops before timing when one is
wrong. See harness.py for the JSON file, masked_attention_problems.py for the implementations.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import (
    Row,
    machine_folder,
    peak_mb,
    print_table,
    relative_error,
    time_in_turn,
    write_json,
)
from benchmarks.masked_attention_problems import (
    ATTENTION_OF,
    MASKS,
    MASKS_OF,
    Decoder,
    Inputs,
    Shape,
    fused_mask_with_resize,
    layer_step,
)
from kernels import exact_mask_bits, mask_bits, resize_mask_features
from kernels.masked_xattn.reference import masked_cross_attention_reference, unpack_bits

OPS = ("mask_bits", "masked_cross_attention", "mask_and_attend", "layer_step", "decoder")
# an implementation of ours may be wrong by this much, or by twice what plain PyTorch is
ERROR_BOUND = 1e-5
# of the bits of the original route
FLIP_BOUND = 1e-3

Calls = dict[str, Callable[[], object]]


def attention_errors(inputs: Inputs, names: Sequence[str]) -> dict[str, float]:
    """Relative error of each implementation's attention against float64 under the same mask."""
    q, k, v = (x.detach() for x in inputs.qkv)
    errors = dict.fromkeys(names, 0.0)
    with torch.no_grad():
        for i in range(q.shape[0]):
            packed = [x[i : i + 1] for x in (inputs.bits.bits, inputs.bits.row_any)]
            operands = [x[i : i + 1].double() for x in (q, k, v)]
            exact = masked_cross_attention_reference(*operands, *packed)
            visible = inputs.bits.may_attend()[i : i + 1, None]
            heads = inputs.shape.num_heads
            masks = {"original": ~visible.expand(-1, heads, -1, -1).flatten(0, 1)}
            masks["fused"] = inputs.bits._replace(bits=packed[0], row_any=packed[1])
            for name in names:
                mask = masks.get(name, visible)
                operands = [x[i : i + 1] for x in (q, k, v)]
                out = ATTENTION_OF[name](inputs, *operands, mask)
                errors[name] = max(errors[name], relative_error(out, exact))
    return errors


def flip_rate(inputs: Inputs) -> float:
    """Share of bits in which resized features and the original route differ, in float32.

    In 16 bits the original route rounds full-size logits, which flips far more bits.
    """
    level_hw = inputs.shape.level_hw
    embed, features = inputs.embed.float(), inputs.features.float()
    exact = exact_mask_bits(torch.einsum("bqc,bchw->bqhw", embed, features), level_hw)
    fast = mask_bits(embed, resize_mask_features(features, level_hw))
    differs = fast.bits ^ exact.bits
    return unpack_bits(differs, fast.num_keys).float().mean().item()


def check(inputs: Inputs, names: Sequence[str]) -> dict[str, float]:
    """The attention errors; ends the program when a result of ours is wrong."""
    errors, flips = attention_errors(inputs, names), flip_rate(inputs)
    allowed = max(ERROR_BOUND, 2 * errors.get("original", 0.0))
    if errors.get("fused", 0.0) > allowed or flips > FLIP_BOUND:
        raise SystemExit(
            f"{inputs.shape.name}: wrong results, nothing is timed: error {errors}, "
            f"{flips:.2e} of the mask bits differ from the original route"
        )
    print(f"\n{inputs.shape.name}: {flips:.1e} of the mask bits differ from the original route")
    return errors


def forward_calls(op: str, inputs: Inputs, names: Sequence[str]) -> Calls:
    """The calls of one op by implementation."""
    if op == "mask_bits":
        calls: Calls = {name: bind(MASKS_OF[name], inputs) for name in names if name != "flex"}
        calls["fused_with_resize"] = bind(fused_mask_with_resize, inputs)
        return calls
    if op == "masked_cross_attention":
        masks = {name: MASKS_OF[name](inputs) for name in names}
        return {name: bind(ATTENTION_OF[name], inputs, *inputs.qkv, masks[name]) for name in names}
    if op == "mask_and_attend":
        return {name: bind(mask_and_attend, name, inputs) for name in names}
    return {name: bind(layer_step, name, inputs, inputs.query) for name in names}


def mask_and_attend(name: str, inputs: Inputs) -> Tensor:
    """Mask building and attention of ready queries, keys and values."""
    return ATTENTION_OF[name](inputs, *inputs.qkv, MASKS_OF[name](inputs))


def bind(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    """A call without arguments."""
    return lambda: function(*arguments)


def without_grad(call: Callable[[], object]) -> Callable[[], object]:
    """The call as inference runs it."""

    def run() -> object:
        with torch.no_grad():
            return call()

    return run


def with_backward(call: Callable[[], object], leaves: Sequence[Tensor]) -> Callable[[], object]:
    """The call and the gradients of `leaves`."""
    # made once; not constant, because a constant has no gradient through a layer norm
    grad_out: list[Tensor] = []

    def run() -> object:
        out = call()
        assert isinstance(out, Tensor)
        if not grad_out:
            steps = torch.arange(out.numel(), device=out.device, dtype=torch.float32)
            grad_out.append(steps.cos().view(out.shape).to(out.dtype))
        return torch.autograd.grad(out, leaves, grad_out[0])

    return run


def bench_calls(
    op: str, shape_name: str, calls: Calls, leaves: Sequence[Tensor], errors: dict[str, float],
    arguments: argparse.Namespace,
) -> list[Row]:  # fmt: skip
    """Rows of one op: forward, and forward with backward where there are leaves."""
    passes = {"forward": {name: without_grad(call) for name, call in calls.items()}}
    if leaves:
        # FlexAttention has no backward on the CPU
        has_backward = [name for name in calls if name != "flex" or arguments.device == "cuda"]
        passes["forward_backward"] = {
            name: with_backward(calls[name], leaves) for name in has_backward
        }
    rows = []
    for pass_, functions in passes.items():
        timings = time_in_turn(functions, device=arguments.device, budget_s=arguments.budget)
        for name, timing in timings.items():
            row = Row(
                op=op,
                shape=shape_name,
                dtype=arguments.dtype,
                threads=torch.get_num_threads(),
                pass_=pass_,
                implementation=name,
                ms=timing.median_ms,
                rel_error=errors.get(name),
                peak_mb=peak_mb(functions[name], device=arguments.device),
            )
            rows.append(row)
        ours = timings["fused"]
        lines = [
            [op, pass_, name, t.median_ms, t.best_ms, t.best_cpu_ms, t.median_ms / ours.median_ms]
            for name, t in timings.items()
        ]
        print_table(("op", "pass", "implementation", "ms", "best", "best cpu", "x fused"), lines)
    return rows


def bench_shape(shape: Shape, arguments: argparse.Namespace) -> list[Row]:
    """Check, time and print the ops of one shape."""
    inputs = Inputs(shape, dtype=getattr(torch, arguments.dtype), device=arguments.device)
    names = arguments.implementations
    errors = check(inputs, names)
    leaves = {
        "mask_bits": [],
        "masked_cross_attention": inputs.qkv,
        "mask_and_attend": inputs.qkv,
        "layer_step": [inputs.query, inputs.memory],
    }
    rows = []
    for op in [op for op in arguments.ops if op != "decoder"]:
        calls = forward_calls(op, inputs, names)
        rows += bench_calls(op, shape.name, calls, leaves[op], errors, arguments)
    return rows


def bench_decoder(arguments: argparse.Namespace) -> list[Row]:
    """Nine layers over strides 32, 16 and 8 of an image of 1024 x 1024 pixels."""
    rows = []
    for masks in arguments.masks:
        levels = [make_shape(arguments, (side, side), masks) for side in (32, 64, 128)]
        dtype, device = getattr(torch, arguments.dtype), arguments.device
        inputs = [Inputs(level, dtype=dtype, device=device) for level in levels]
        errors = dict.fromkeys(arguments.implementations, 0.0)
        leaves = [inputs[0].query, *(level.memory for level in inputs)]
        decoders = {name: Decoder(name, inputs) for name in arguments.implementations}
        states = {name: decoder().detach() for name, decoder in decoders.items()}
        for name, result in states.items():
            errors[name] = relative_error(result, states["original"])
        calls: Calls = {name: bind(decoder) for name, decoder in decoders.items()}
        name = f"9layers-1024x1024-{levels[0].name.split('-', 2)[2]}"
        print(f"\n{name}: errors are against the original decoder")
        rows += bench_calls("decoder", name, calls, leaves, errors, arguments)
    return rows


def make_shape(arguments: argparse.Namespace, level_hw: tuple[int, int], masks: str) -> Shape:
    """The shape of one level; mask features are those of the image at stride 4."""
    is_1024 = level_hw in ((32, 32), (64, 64), (128, 128))
    return Shape(
        num_images=arguments.images,
        num_queries=arguments.queries,
        dim=arguments.dim,
        num_heads=arguments.heads,
        level_hw=level_hw,
        features_hw=(256, 256) if is_1024 else (2 * level_hw[0], 2 * level_hw[1]),
        masks=masks,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--levels", nargs="+", default=["32x32", "64x64", "128x128", "100x167"])
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=list(MASKS))
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget", type=float, default=4.0, help="seconds per implementation")
    parser.add_argument("--flex", action=argparse.BooleanOptionalAction, help="default: on CUDA")
    arguments = parser.parse_args()
    is_cuda = arguments.device == "cuda"
    arguments.dtype = arguments.dtype or ("bfloat16" if is_cuda else "float32")
    has_flex = is_cuda if arguments.flex is None else arguments.flex
    arguments.implementations = ["fused", "original", "sdpa", *(["flex"] if has_flex else [])]
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    rows = []
    for level in arguments.levels:
        height, width = (int(side) for side in level.split("x"))
        for masks in arguments.masks:
            rows += bench_shape(make_shape(arguments, (height, width), masks), arguments)
    if "decoder" in arguments.ops:
        rows += bench_decoder(arguments)
    path = arguments.json or machine_folder(arguments.device) / "masked_attention.json"
    write_json(path, arguments.device, rows)
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
