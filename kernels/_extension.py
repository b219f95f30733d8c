"""Loads the two compiled libraries (C++ for the CPU, CUDA) and remembers why one is missing."""

from dataclasses import dataclass
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent
_BUILD_HINT = "Build it with `pip install --no-build-isolation -e .` where a compiler is installed."


@dataclass(frozen=True, kw_only=True)
class LibraryStatus:
    """Whether one compiled library is loaded, and if not, the reason in a sentence."""

    name: str
    why_missing: str | None

    @property
    def is_loaded(self) -> bool:
        return self.why_missing is None


def load_library(name: str) -> LibraryStatus:
    """The status of `kernels/<name>.so` after trying to load it; never raises."""
    path = _FOLDER / f"{name}.so"
    if not path.exists():
        return LibraryStatus(name=name, why_missing=f"{path.name} is not built. {_BUILD_HINT}")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        reason = f"{path.name} does not load with torch {torch.__version__}: {error}"
        return LibraryStatus(name=name, why_missing=reason)
    return LibraryStatus(name=name, why_missing=None)


def _load_cuda_library() -> LibraryStatus:
    # the CUDA library needs symbols that only a CUDA build of torch exports
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is a build without CUDA."
        return LibraryStatus(name="_cuda", why_missing=reason)
    return load_library("_cuda")


CPU_LIBRARY = load_library("_cpu")
CUDA_LIBRARY = _load_cuda_library()
