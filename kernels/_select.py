"""Chooses the backend of a call before it runs, and says once what was chosen and why."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from kernels.errors import BackendUnavailable

_log = logging.getLogger("kernels")
_announced: set[tuple[str, ...]] = set()
# the backend of calls that ask for none, while a graph is exported; None: the fastest
_default: list[str | None] = [None]
# how the reason of a backend for another device starts
ELSEWHERE = "the tensors are on "


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A backend, and the reason why it cannot run this call (None: it can)."""

    name: str
    why_not: str | None


@contextlib.contextmanager
def default_backend(name: str) -> Iterator[None]:
    """Within the context, calls that ask for no backend run on this one; for exported graphs."""
    _default.append(name)
    try:
        yield
    finally:
        _default.pop()


def choose_backend(op: str, candidates: Sequence[Candidate], requested: str | None) -> str:
    """The name of the backend that runs this call: `requested`, or the first that can.

    `candidates` are ordered from fastest to slowest.

    Raises:
        BackendUnavailable: `requested` cannot run this call, or no candidate can.
        ValueError: `requested` is not the name of a backend of this operator.
    """
    requested = requested or _default[-1]
    if requested is None:
        return _first_available(op, candidates)
    for candidate in candidates:
        if candidate.name != requested:
            continue
        if candidate.why_not is None:
            return requested
        able = [other.name for other in candidates if other.why_not is None]
        raise BackendUnavailable(
            f"{op}: backend {requested!r} cannot run this call: {candidate.why_not} "
            f"Backends that can: {able}. Pass one of them, or backend=None."
        )
    names = [candidate.name for candidate in candidates]
    raise ValueError(f"{op}: backend must be None or one of {names}; got {requested!r}.")


def _first_available(op: str, candidates: Sequence[Candidate]) -> str:
    for index, candidate in enumerate(candidates):
        if candidate.why_not is None:
            # a log call would break a graph that is being traced
            if not torch.compiler.is_compiling():
                _announce(op, candidate.name, candidates[:index])
            return candidate.name
    reasons = "; ".join(f"{candidate.name}: {candidate.why_not}" for candidate in candidates)
    raise BackendUnavailable(f"{op}: no backend can run this call. {reasons}")


def _announce(op: str, chosen: str, passed_over: Sequence[Candidate]) -> None:
    # a backend of another device is not a slower choice, and nothing that the user can mend
    reasons = tuple(
        f"{candidate.name}: {candidate.why_not}"
        for candidate in passed_over
        if not str(candidate.why_not).startswith(ELSEWHERE)
    )
    key = (op, chosen, *reasons)
    if key in _announced:
        return
    _announced.add(key)
    if reasons:
        _log.warning("%s runs on backend %r; not %s", op, chosen, "; not ".join(reasons))
    else:
        _log.info("%s runs on backend %r", op, chosen)
