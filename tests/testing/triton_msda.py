"""Runs the Triton kernels of deformable attention in the interpreter; a process of its own.

TRITON_INTERPRET must be set before Triton is imported. Prints one JSON object: for each case the
relative errors of the output and of all gradients against the reference in float64.
"""

import json
import math

import torch

from tests.testing.msda_cases import (
    Case,
    as_double,
    call,
    fused_inputs,
    grad_output_of,
    largest_errors,
    points_inputs,
    results,
)

# a head dim that is no power of two, and queries that do not fill the last block
CASE = Case(num_images=2, num_queries=5, num_heads=2, head_dim=12, num_levels=3, num_points=1)
FULL = Case(num_images=1, num_queries=3, num_heads=2, head_dim=512 // 8, num_levels=2)


def _errors(case: Case, inputs: list[torch.Tensor], dtype: torch.dtype) -> list[float]:
    grad_output = grad_output_of(case, dtype)
    found = results(call(case, inputs, backend="triton"), inputs, grad_output)
    exact_call = call(case, inputs, backend="reference")
    return largest_errors(found, results(exact_call, as_double(inputs), grad_output.double()))


def _hostile() -> list[float]:
    inputs = points_inputs(CASE, dtype=torch.float32)
    with torch.no_grad():
        inputs[1][0, 0, 0, 0, 0, 0] = math.nan
        inputs[1][1, 2, 1, 1, 0, 1] = math.inf
        inputs[1][0, 4, 1, 2, 0] = -9.0
        inputs[2][0, 4, 1, 2, 0] = math.nan
    return _errors(CASE, inputs, torch.float32)


def main() -> None:
    torch.manual_seed(0)
    found = {
        "points float32": _errors(CASE, points_inputs(CASE, dtype=torch.float32), torch.float32),
        "points float16": _errors(CASE, points_inputs(CASE, dtype=torch.float16), torch.float16),
        "wide rows": _errors(FULL, points_inputs(FULL, dtype=torch.float32), torch.float32),
        "hostile": _hostile(),
    }
    for form in (2, 4):
        for dtype in (torch.float32, torch.float16):
            inputs = fused_inputs(CASE, coordinates=form, dtype=dtype)
            name = f"fused {form} {str(dtype).removeprefix('torch.')}"
            found[name] = _errors(CASE, inputs, dtype)
    for name, case in (("no queries", Case(num_queries=0)), ("no images", Case(num_images=0))):
        found[name] = _errors(case, points_inputs(case, dtype=torch.float32), torch.float32)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
