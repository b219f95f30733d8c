"""What a loss needs to know about the other processes: means of counts, and their rows."""

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor


class World:
    """All processes of torch.distributed, or just this one where it is not initialised.

    keeps_local_gradient: `gather` does not multiply the gradient, as the released X-Decoder.
    """

    def __init__(self, *, keeps_local_gradient: bool = False) -> None:
        self._keeps_local_gradient = keeps_local_gradient

    @property
    def size(self) -> int:
        return dist.get_world_size() if _is_distributed() else 1

    @property
    def rank(self) -> int:
        return dist.get_rank() if _is_distributed() else 0

    def mean(self, counts: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Mean over processes, of numbers that carry no gradient."""
        if self.size == 1:
            return counts
        counts = counts.clone()
        dist.all_reduce(counts)
        return counts / self.size

    def gather(self, rows: Shaped[Tensor, "n *c"]) -> Shaped[Tensor, "m *c"]:
        """The rows of all processes in rank order; processes may hold different numbers.

        Gradient reaches this process's own rows, multiplied by the number of processes (unless
        `keeps_local_gradient`). When every process computes the same loss from the gathered rows
        and gradients of parameters are averaged over processes, as DDP and ZeRO do, the average is
        the gradient of the loss.
        """
        if self.size == 1:
            return rows
        parts = self._gather_padded(rows.detach())
        factor = 1.0 if self._keeps_local_gradient else float(self.size)
        parts[self.rank] = _scale_gradient(rows, factor) if rows.is_floating_point() else rows
        return torch.cat(parts)

    def _gather_padded(self, rows: Tensor) -> list[Tensor]:
        count = torch.tensor([len(rows)], device=rows.device)
        counts = [torch.zeros_like(count) for _ in range(self.size)]
        dist.all_gather(counts, count)
        most = max(int(number) for number in counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [part[: int(number)] for part, number in zip(parts, counts, strict=True)]


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The same values, with a gradient multiplied by `factor`."""
    # equals `tensor` exactly: the second term is zero in value, not only almost
    return tensor.detach() + (tensor - tensor.detach()) * factor
