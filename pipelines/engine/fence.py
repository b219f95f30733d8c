"""One start of a run at a time: the newest owns the folder, whatever became of the one before.

A cluster that has lost a node starts the job again elsewhere, while processes on the lost node may
still run, and would write rows and checkpoints between those of their successor.
"""

import secrets
from pathlib import Path

from pipelines.engine.checkpoint_files import write_text_atomically
from pipelines.errors import ConfigError


class Fence:
    """This start's claim to a run folder; taking it ends every older one."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "owner"
        self._token = secrets.token_hex(8)
        write_text_atomically(self._path, self._token)

    def check(self) -> None:
        """Return if this start still owns the folder; call it before writing there.

        Raises:
            ConfigError: a newer start has taken the folder, which must not be requeued.
        """
        if self._path.read_text() != self._token:
            raise ConfigError(
                f"run folder: {self._path.parent} belongs to a newer start of this run, which goes "
                "on from the newest checkpoint; this one ends without writing. Start one job for "
                "each run folder."
            )
