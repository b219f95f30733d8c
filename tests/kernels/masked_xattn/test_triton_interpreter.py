"""The Triton kernels in the interpreter: float32 and float16 (bfloat16 is wrong there)."""

import json

import pytest

pytestmark = pytest.mark.interp

# images, heads, queries, keys, head dim, splits, dtype
CASES = {
    "one tile": (2, 3, 7, 21, 16, None, "float32"),
    "splits and padded head dim": (1, 2, 40, 200, 20, 3, "float32"),
    "several row blocks": (1, 1, 70, 130, 32, 2, "float32"),
    "wide head": (1, 1, 9, 70, 128, 2, "float32"),
    "one visible key of three": (1, 2, 9, 3, 32, None, "float32"),
    "float16": (1, 2, 21, 77, 64, 2, "float16"),
}
BITS_CASES = {"odd": (2, 7, 9, 33, 3), "wide": (1, 70, 40, 153, 7), "one": (1, 1, 3, 1, 0)}

# Triton decides at import whether it interprets, so this runs in a process of its own
SCRIPT = """
import json
import torch
from kernels.masked_xattn import impl_triton, reference

torch.use_deterministic_algorithms(True)
torch.manual_seed(0)
results = {"attention": {}, "bits": {}}
for name, (b, n, queries, keys, d, splits, dtype) in CASES.items():
    dtype = getattr(torch, dtype)
    q, k, v = (torch.randn(b, x, n, d, dtype=dtype).transpose(1, 2) for x in (queries, keys, keys))
    grad_out = torch.randn(b, n, queries, d, dtype=dtype)
    may_attend = torch.rand(b, queries, keys) < 0.2
    may_attend[0, 0] = False
    # one split of keys is hidden from a row
    may_attend[:, 1, : keys // 2] = False
    may_attend[:, 1, -1] = True
    bits, row_any = reference.pack_bits(may_attend), may_attend.any(-1)
    out, lse = impl_triton.forward(q, k, v, bits, row_any, splits)
    found = [out, *impl_triton.backward(grad_out, q, k, v, out, lse, bits, row_any, splits)]
    again = [impl_triton.forward(q, k, v, bits, row_any, splits)[0]]
    again += impl_triton.backward(grad_out, q, k, v, out, lse, bits, row_any, splits)
    errors = []
    results["attention"][name] = {
        "repeats": all(torch.equal(x, y) for x, y in zip(found, again)), "errors": errors
    }
    wanted = []
    for compute in (dtype, torch.float64):
        operands = [x.to(compute).requires_grad_() for x in (q, k, v)]
        out = reference.masked_cross_attention_reference(*operands, bits, row_any)
        wanted.append([out, *torch.autograd.grad(out, operands, grad_out.to(compute))])
    for x, low, exact in zip(found, *wanted):
        error, low_error = ((y.double() - exact).abs().max().item() for y in (x, low))
        errors.append([error, low_error, exact.abs().max().item()])
for name, (b, rows, channels, keys, unmasked) in BITS_CASES.items():
    embed, features = torch.randn(b, rows, channels), torch.randn(b, channels, keys)
    embed[0, 0], features[0] = -1.0, features[0].abs()
    found = impl_triton.mask_bits(embed, features, unmasked)
    wanted = reference.mask_bits_reference(embed.double(), features.double(), unmasked)
    results["bits"][name] = [torch.equal(x, y) for x, y in zip(found, wanted)]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(run_script):
    header = f"CASES = {CASES!r}\nBITS_CASES = {BITS_CASES!r}\n"
    return json.loads(run_script(header + SCRIPT, TRITON_INTERPRET="1"))


@pytest.mark.parametrize("case", CASES)
def test_triton_attention_is_as_accurate_as_the_reference(case, results):
    eps = 2.0**-23 if CASES[case][-1] == "float32" else 2.0**-10
    names = ("out", "grad_q", "grad_k", "grad_v")
    errors = results["attention"][case]["errors"]
    for name, (error, low_error, size) in zip(names, errors, strict=True):
        # twice the error of the reference in this dtype, and two roundings of the largest value;
        # 16-bit weights enter the second product rounded, one rounding more than the reference
        assert error <= 2 * low_error + 2 * eps * size, name


@pytest.mark.parametrize("case", CASES)
def test_triton_attention_repeats_bit_for_bit(case, results):
    assert results["attention"][case]["repeats"]


@pytest.mark.parametrize("case", BITS_CASES)
def test_triton_bits_and_flags_equal_the_reference(case, results):
    assert results["bits"][case] == [True, True, True]
