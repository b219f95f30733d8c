"""The Triton kernels compiled for GPUs that are not there."""

import re

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.masked_xattn import impl_triton

pytestmark = pytest.mark.aot

FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# bytes of shared memory that one program may use
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
STRIDES_AND_SIZES = ["i64"] * 9 + ["i32"] * 5


def compile_kernel(kernel, types, constants, *, arch, num_warps):
    names = kernel.arg_names
    remaining = iter(types)
    signature = {name: "constexpr" if name in constants else next(remaining) for name in names}
    # allocations are 16-byte aligned, and only with that knowledge are loads vectors
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*")
    }
    constants = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constants, aligned)
    target = GPUTarget("cuda", arch, 32)
    return triton.compile(source, target=target, options={"num_warps": num_warps})


def compile_attention(kernel, options, pointers, scales, *, arch, dtype, head_dim):
    num_warps = options.pop("num_warps")
    constants = {"D": head_dim, **options, "PRECISION": "ieee" if dtype == "fp32" else "tf32"}
    types = [*pointers, *STRIDES_AND_SIZES, *["fp32"] * scales]
    return compile_kernel(kernel, types, constants, arch=arch, num_warps=num_warps)


def check(compiled, *, arch):
    assert compiled.metadata.shared <= SHARED_LIMIT[arch]
    assert len(compiled.asm["cubin"]) > 0
    assert re.search(r"\b(atom|red)\.", compiled.asm["ptx"]) is None
    return compiled.asm["ptx"]


@pytest.mark.parametrize(
    ("arch", "dtype", "head_dim"),
    [(80, "bf16", 32), (90, "bf16", 64), (90, "fp16", 128), (90, "fp32", 64), (100, "bf16", 32)],
)
def test_attention_compiles_without_atomics(arch, dtype, head_dim):
    x = f"*{dtype}"
    forward = compile_attention(
        impl_triton._masked_xattn_forward_kernel,
        impl_triton.launch_options(101, head_dim, FLOATS[dtype]),
        [x, x, x, "*i32", "*i1", "*fp32", "*fp32", "*fp32"],
        1, arch=arch, dtype=dtype, head_dim=head_dim,
    )  # fmt: skip
    backward = compile_attention(
        impl_triton._masked_xattn_backward_kernel,
        impl_triton.backward_launch_options(101, head_dim, FLOATS[dtype]),
        [x, x, x, x, x, "*fp32", "*i32", "*i1", "*fp32", x, x],
        2, arch=arch, dtype=dtype, head_dim=head_dim,
    )  # fmt: skip
    for compiled in (forward, backward):
        ptx = check(compiled, arch=arch)
        if dtype != "fp32":
            assert "mma" in ptx


@pytest.mark.parametrize(("arch", "dtype"), [(80, "bf16"), (90, "fp32"), (100, "fp16")])
def test_mask_bits_compile_without_atomics(arch, dtype):
    constants = {
        "C": 256,
        "BLOCK_R": 64,
        "BLOCK_K": 64,
        "BLOCK_C": 32,
        "PRECISION": "ieee" if dtype == "fp32" else "tf32",
    }
    types = [f"*{dtype}"] * 2 + ["*i32", "*i1"] + ["i32"] * 4 + ["i64"] * 4
    kernel = impl_triton._mask_bits_kernel
    check(compile_kernel(kernel, types, constants, arch=arch, num_warps=4), arch=arch)


def test_the_small_kernels_compile():
    constants = {"D": 32, "BLOCK_R": 16, "BLOCK_D": 32}
    combine = ["*fp32", "*fp32", "*fp32", "*bf16", "*fp32", "i32", "i32"]
    small = (
        (impl_triton._masked_xattn_combine_kernel, combine, constants),
        (impl_triton._masked_xattn_sum_kernel, ["*fp32", "*bf16", "i32", "i32"], constants),
        (impl_triton._row_any_kernel, ["*i32", "*i1", "i32", "i32"], {"BLOCK_W": 128}),
    )
    for kernel, types, sizes in small:
        check(compile_kernel(kernel, types, sizes, arch=90, num_warps=1), arch=90)
