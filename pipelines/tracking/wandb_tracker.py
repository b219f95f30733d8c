"""Weights & Biases; the only place that imports it.

A run keeps its id over restarts and passes its own step, so curves continue where they stopped.
Offline it writes below the run folder: `wandb sync <run folder>/wandb/offline-run-*` sends it.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from pipelines.errors import BackendUnavailable
from pipelines.tracking.base import Row

_log = logging.getLogger(__name__)
_REACH_SECONDS = 3.0
_NAMING_SECONDS = 1.0


class WandbTracker:
    """Sends rows and pictures to one wandb run, or to its offline files."""

    def __init__(
        self,
        folder: Path,
        *,
        mode: Literal["auto", "offline", "online"],
        project: str,
        name: str,
        run_id: str,
        config: Mapping[str, Any],
    ) -> None:
        self._wandb = _import_wandb()
        resolved = _resolve(mode)
        _log.info("wandb: %s, run id %s", resolved, run_id)
        self._open: Callable[[], Any] = partial(
            self._wandb.init,
            project=project,
            name=name,
            id=run_id,
            resume="allow",
            mode=resolved,
            dir=str(folder),
            config=dict(config),
            settings=self._wandb.Settings(silent=True, console="off"),
        )
        self._run = self._open()

    def log_rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log(dict(row), step=int(row["step"]))

    def log_pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        images = {name: self._wandb.Image(str(path)) for name, path in pictures.items()}
        self._run.log(images, step=step)

    def go_back(self, step: int) -> None:
        """Continue as a restart does: within one start, rows of earlier steps would be dropped."""
        self.finish()
        # offline files are named by the second
        time.sleep(_NAMING_SECONDS)
        self._run = self._open()

    def finish(self) -> None:
        # the writer is asynchronous: without this the last rows are lost
        self._run.finish()
        # and its service still holds bytes of the file when it says so; its end writes them
        self._wandb.teardown()


def _import_wandb() -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb
    except ImportError as error:
        raise BackendUnavailable(
            f"tracking.wandb needs the package wandb; got {error}. "
            "Install the extra `train`, or set tracking.wandb=off."
        ) from error
    return wandb


def _resolve(mode: str) -> Literal["offline", "online"]:
    """Online if it is asked for or possible; an unreachable server would block for minutes."""
    if mode != "auto":
        return "offline" if mode == "offline" else "online"
    if os.environ.get("WANDB_MODE", "online") != "online" or not _has_key():
        return "offline"
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=_REACH_SECONDS).close()
    except OSError:
        return "offline"
    return "online"


def _has_key() -> bool:
    return "WANDB_API_KEY" in os.environ or (Path.home() / ".netrc").is_file()
