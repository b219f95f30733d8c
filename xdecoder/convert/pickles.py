"""Weights from files of other programs, without running what is in them."""

import importlib
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xdecoder.convert.rules import CheckpointError

_CORE = "core" if np.__version__.startswith("1.") else "_core"
_MULTIARRAY = importlib.import_module(f"numpy.{_CORE}.multiarray")
# what a pickled dictionary of arrays needs; numpy 2 moved its core
_MAKERS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    **{
        (f"numpy.{core}.multiarray", name): getattr(_MULTIARRAY, name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows arrays, dictionaries, strings and numbers, and nothing that could act."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _MAKERS:
            raise CheckpointError(
                f"convert: a weights file may hold arrays, dictionaries, strings and numbers; "
                f"this one asks for {module}.{name}, which could run code. Do not load it, or "
                "save its arrays as safetensors where you trust it."
            )
        return _MAKERS[module, name]


def read_detectron2_pickle(path: Path) -> dict[str, Tensor]:
    """The arrays of a detectron2 `.pkl` (under "model", or at the top) as tensors.

    Raises: CheckpointError for anything that is not a dictionary of arrays.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"convert: {path} must be a pickled dictionary of arrays; reading it failed: {error}. "
            "Check that the download is complete."
        ) from error
    return _tensors(content, path)


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` or `.pth` file, read with torch's weights-only unpickler.

    Raises: CheckpointError where the file holds anything else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"convert: {path} must hold tensors only; torch refused it: {error}. Do not load it, "
            "or save its tensors as safetensors where you trust it."
        ) from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    values = content.values() if isinstance(content, dict) else [content]
    strange = [
        type(value).__name__ for value in values if not isinstance(value, np.ndarray | Tensor)
    ]
    if strange:
        raise CheckpointError(
            f"convert: {path} must be a dictionary of names to arrays; got {strange[0]} in it."
        )
    return {name: torch.as_tensor(value) for name, value in content.items()}
