"""Waiting for what another process does, with an end to patience."""

import time
from collections.abc import Callable


def wait_until(is_true: Callable[[], bool], what: str, *, seconds: float = 20.0) -> None:
    """Return once it is true.

    Raises:
        AssertionError: it did not become true in time.
    """
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, f"{what}: not seen within {seconds:g} s"
        time.sleep(0.2)
