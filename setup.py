"""Builds the operators ahead of time: kernels/_cpu.so, and kernels/_cuda.so where nvcc exists.

Without a C++ compiler the installation still succeeds and the package runs on its PyTorch and
Triton backends. XDEC_CUDA_ARCHS="80;90" names the GPU architectures, XDEC_NO_CUDA=1 and
XDEC_NO_EXTENSIONS=1 leave libraries out.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# one binary for torch 2.11 and newer: the stable ABI of that version
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
# no contraction: coordinates must round as in the reference; multiply-adds are written out
CXX_FLAGS = (
    "-O3 -std=c++20 -fPIC -fvisibility=hidden -fopenmp-simd -fno-math-errno -fno-trapping-math "
    "-ffp-contract=off -Wall -Wextra -Wno-psabi -Wno-ignored-attributes -Wno-unknown-pragmas "
    "-Wno-uninitialized -Wno-maybe-uninitialized"
)
AVX2_FLAGS = "-mavx2 -mfma -mf16c"
ISA_FLAGS = {
    "avx2": AVX2_FLAGS,
    "avx512": f"{AVX2_FLAGS} -mavx512f -mavx512dq -mavx512bw -mavx512vl",
}
# operators without a folder yet are skipped
OPERATORS = ("msda", "masked_xattn")


def sources(pattern: str) -> list[Path]:
    """The sources of every operator that match `pattern`, without sets of other processors."""
    found = [path for op in OPERATORS for path in sorted((ROOT / "csrc" / op).glob(pattern))]
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return [path for path in found if is_x86 or not path.stem.endswith(tuple(ISA_FLAGS))]


def cxx_flags(source: Path) -> str:
    for name, flags in ISA_FLAGS.items():
        if source.stem.endswith(f"_{name}"):
            return f"{CXX_FLAGS} {flags}"
    return CXX_FLAGS


def gpu_flags() -> str:
    archs = os.environ.get("XDEC_CUDA_ARCHS", "80;90").replace(",", ";").split(";")
    codes = [f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in archs if arch]
    # forward compatibility: the newest one also as PTX
    codes.append(f"-gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    host = "-Xcompiler -fPIC,-fvisibility=hidden"
    relaxed = "--expt-relaxed-constexpr --threads 2"
    return f"-O3 -std=c++20 {host} {relaxed} {' '.join(codes)}"


def ninja_rules(cxx: str, nvcc: str | None) -> list[str]:
    """The rules of the build file; Torch's headers are needed by `*_op.cpp` alone."""
    import torch
    from torch.utils.cpp_extension import include_paths

    torch_lib = Path(torch.__file__).parent / "lib"
    includes = " ".join(f"-isystem {path}" for path in include_paths())
    rules = [
        f"includes = {includes} {TORCH_TARGET}",
        "rule cxx",
        f"  command = {cxx} -MMD -MF $out.d -c $in -o $out $flags $includes",
        "  depfile = $out.d",
        "rule link",
        f"  command = {cxx} -shared $in -o $out -L{torch_lib} -ltorch_cpu -ltorch -lc10 $libs",
    ]
    if nvcc is not None:
        rules += [
            "rule nvcc",
            f"  command = {nvcc} -MMD -MF $out.d -c $in -o $out {gpu_flags()}",
            "  depfile = $out.d",
        ]
    return rules


def library(name: str, out: Path, parts: list[Path], libs: str, cuda_include: str) -> list[str]:
    """Build statements of one shared library; objects lie beside the build file."""
    lines, objects = [], []
    for source in parts:
        target = f"{name}_{source.parent.name}_{source.stem}.o"
        objects.append(target)
        if source.suffix == ".cu":
            lines.append(f"build {target}: nvcc {source}")
        else:
            lines += [
                f"build {target}: cxx {source}",
                f"  flags = {cxx_flags(source)}{cuda_include}",
            ]
    return [*lines, f"build {out}: link {' '.join(objects)}", f"  libs = {libs}"]


def find_cuda_home() -> Path | None:
    """The CUDA toolkit, when Torch itself is a CUDA build and CUDA is wanted."""
    import torch

    if os.environ.get("XDEC_NO_CUDA") == "1" or torch.version.cuda is None:
        return None
    nvcc = shutil.which("nvcc")
    # nvcc on PATH may be a link or a script outside of the toolkit
    homes = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parent.parent]
    for home in [*homes, "/usr/local/cuda"]:
        if home and (Path(home) / "include" / "cuda_runtime_api.h").exists():
            return Path(home)
    return None


def write_build_file(build: Path, out: Path, cxx: str) -> None:
    home = find_cuda_home()
    nvcc = None if home is None else str(home / "bin" / "nvcc")
    cpu_parts = [path for path in sources("*.cpp") if "_cuda" not in path.stem]
    lines = ninja_rules(cxx, nvcc)
    lines += library("cpu", out / "_cpu.so", cpu_parts, "", "")
    cuda_parts = sources("*_cuda*.cpp") + sources("*.cu")
    if home is not None and cuda_parts:
        libs = f"-L{home}/lib64 -lcudart_static -ldl -lrt -lpthread -ltorch_cuda"
        include = f" -isystem {home}/include -DUSE_CUDA"
        lines += library("cuda", out / "_cuda.so", cuda_parts, libs, include)
    (build / "build.ninja").write_text("\n".join([*lines, ""]))


class BuildOperators(build_ext):
    """Runs ninja once; a missing compiler is a message, a failing one is an error."""

    def run(self) -> None:
        cxx = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        if cxx is None or os.environ.get("XDEC_NO_EXTENSIONS") == "1":
            print("operators: no C++ compiler wanted or found; PyTorch and Triton only.")
            return
        out = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        build = ROOT / "build" / "operators"
        build.mkdir(parents=True, exist_ok=True)
        (out / "kernels").mkdir(parents=True, exist_ok=True)
        write_build_file(build, out / "kernels", cxx)
        subprocess.run([sys.executable, "-m", "ninja", "-C", str(build)], check=True)

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(
    ext_modules=[Extension("kernels._cpu", sources=[])],
    cmdclass={"build_ext": BuildOperators},
)
