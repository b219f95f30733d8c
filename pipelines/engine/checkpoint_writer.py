"""One checkpoint on its way to the disk, in a thread, from tensors that nobody else writes to."""

import errno
import logging
import re
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from pipelines.engine.checkpoint_files import CheckpointFolders, write_tensors
from pipelines.errors import CheckpointError, PipelineError

_log = logging.getLogger(__name__)
_ADVICE = {
    errno.ENOSPC: "The disk is full: free space, or lower checkpoint.keep_last.",
    errno.EDQUOT: "The quota is used up: free space, or lower checkpoint.keep_last.",
    errno.EROFS: "The disk can only be read: have it mounted for writing.",
    errno.EACCES: "Writing is not permitted there: change the rights of the folder.",
    errno.ENOENT: "The folder is gone: bring it back, or set another --output-dir.",
}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The files of a checkpoint by name: tensors, and texts."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    texts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that is complete: its folder, and seconds from the request until it counted."""

    step: int
    folder: Path
    seconds: float


class Writer:
    """Writes from its construction on; the process does not end before it has.

    began: `time.perf_counter()` when the checkpoint was asked for.
    """

    def __init__(
        self, folders: CheckpointFolders, step: int, snapshot: Snapshot, *, began: float
    ) -> None:
        self._folders, self._step, self._snapshot, self._began = folders, step, snapshot, began
        self._outcome: Saved | PipelineError | None = None
        self._thread = threading.Thread(target=self._run, name=f"checkpoint of step {step}")
        self._thread.start()

    @property
    def is_complete(self) -> bool:
        """Whether the checkpoint counts; false too if it failed."""
        return isinstance(self._outcome, Saved)

    def result(self) -> Saved:
        """The checkpoint, once it is complete.

        Raises:
            CheckpointError: the disk did not take it.
            ConfigError: another start of the run has taken the folder over.
        """
        self._thread.join()
        assert self._outcome is not None
        if isinstance(self._outcome, PipelineError):
            raise self._outcome
        return self._outcome

    def _run(self) -> None:
        try:
            folder = self._write()
        except (OSError, SafetensorError, PipelineError) as error:
            shutil.rmtree(self._folders.writing(self._step), ignore_errors=True)
            self._outcome = self._cause(error)
            _log.error("%s", self._outcome)
        else:
            seconds = round(time.perf_counter() - self._began, 3)
            self._outcome = Saved(step=self._step, folder=folder, seconds=seconds)

    def _write(self) -> Path:
        if not self._folders.root.is_dir():
            # made again, it would hide the disk that is to be mounted there
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(self._folders.root))
        self._folders.begin(self._step)
        folder = self._folders.writing(self._step)
        for name, tensors in self._snapshot.tensors.items():
            write_tensors(folder / name, tensors)
        for name, text in self._snapshot.texts.items():
            (folder / name).write_text(text)
        return self._folders.commit(self._step)

    def _cause(self, error: Exception) -> PipelineError:
        """The error to end with; a start that was overtaken may find its files gone."""
        if isinstance(error, PipelineError):
            return error
        try:
            self._folders.require_ours()
        except PipelineError as overtaken:
            return overtaken
        except OSError:
            # the folder of the run is gone as well
            return self._explained(error)
        return self._explained(error)

    def _explained(self, error: Exception) -> CheckpointError:
        advice = _ADVICE.get(_error_number(error) or 0, "Look at the disk.")
        return CheckpointError(
            f"checkpoint: step {self._step} must be written to {self._folders.root}; "
            f"got {error}. {advice} Then the same command continues from the newest complete "
            "checkpoint."
        )


def _error_number(error: Exception) -> int | None:
    """The operating system's number; safetensors only has it in its text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"code: (\d+)|os error (\d+)", str(error))
    return int(next(filter(None, found.groups()))) if found else None
