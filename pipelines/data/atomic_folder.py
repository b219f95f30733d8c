"""A folder that is there completely or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import DataError


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`; leaving the block renames it to `out`, an error removes it.

    Raises:
        DataError: `out` already holds something, before or after the work.
    """
    _refuse_filled(out)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _refuse_filled(out)
        # rename replaces an empty folder and nothing else
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _refuse_filled(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out}: must be absent or an empty folder; it holds something else. "
            "Choose another folder, or move this one away."
        )
