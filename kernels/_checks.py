"""Argument checks shared by the operators: each message says what must hold and what came."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_shape(op: str, name: str, tensor: Tensor, *, axes: str, sizes: Sequence[int]) -> None:
    """None when `tensor` has exactly `sizes`; `axes` names them in the message, "B, Q, N".

    Raises:
        ValueError: the shape differs.
    """
    if tensor.dim() == len(sizes) and all(
        have == want for have, want in zip(tensor.shape, sizes, strict=True)
    ):
        return
    raise ValueError(
        f"{op}: {name} must be [{axes}] = {[int(size) for size in sizes]}; "
        f"got {[int(size) for size in tensor.shape]}."
    )


def check_num_dims(op: str, name: str, tensor: Tensor, *, axes: str) -> None:
    """None when `tensor` has as many dimensions as `axes` names.

    Raises:
        ValueError: the number of dimensions differs.
    """
    if tensor.dim() != len(axes.split(",")):
        raise ValueError(
            f"{op}: {name} must be [{axes}], {len(axes.split(','))} dimensions; "
            f"got {[int(size) for size in tensor.shape]}."
        )


def check_dtype(op: str, name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """None when `tensor` has one of the `allowed` dtypes.

    Raises:
        TypeError: the dtype is another.
    """
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        came = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {name} must be {names}; got {came}. Convert it before the call.")


def check_same_device(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """None when both tensors are on the same device.

    Raises:
        ValueError: the devices differ.
    """
    if tensor.device != other.device:
        raise ValueError(
            f"{op}: {name} must be on the device of {other_name}, {other.device}; "
            f"got {tensor.device}. Move it with .to({str(other.device)!r})."
        )
