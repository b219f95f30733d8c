"""Checkpoint folders that are complete or do not count.

    .writing_step_00000100.3f9a02c1/   of one process, which another start of the run never shares
        MANIFEST.json                  size and SHA-256 of every file
        COMPLETE                       SHA-256 of the manifest; written last
    step_00000100/                     the same folder, renamed in one instant
    aside_step_00000200/               damaged, or of steps that are taken again: never read
    latest -> step_00000100            the newest
    best -> step_00000050              of the best metric, where checkpoint.keep_best names one

A process that dies at any point leaves either the whole `step_...` folder or none. So does one that
is still writing when another start of the run, on another node, takes the folder over.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.config import CheckpointConfig
from pipelines.errors import CheckpointError

MANIFEST, COMPLETE = "MANIFEST.json", "COMPLETE"
_log = logging.getLogger(__name__)


class CheckpointFolders:
    """The checkpoints of one run, newest first; methods that change files are for rank 0.

    check: raises where another start of the run has taken over, before anything is changed.
    """

    def __init__(
        self,
        root: Path,
        retention: CheckpointConfig | None = None,
        *,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.root = root
        self._retention = retention or CheckpointConfig()
        self._check = check
        self._token = secrets.token_hex(4)

    def writing(self, step: int) -> Path:
        """Where this process writes the files of a checkpoint before it counts."""
        return self.root / f".writing_{_name(step)}.{self._token}"

    def require_ours(self) -> None:
        """Return if this process may write here; else raise what `check` does."""
        if self._check is not None:
            self._check()

    def begin(self, step: int) -> None:
        """Make an empty folder to write into, and remove what earlier processes left behind."""
        self.require_ours()
        for leftover in self.root.glob(".writing_*"):
            # one that still writes there adds files meanwhile, and finds its folder gone
            shutil.rmtree(leftover, ignore_errors=True)
        self.writing(step).mkdir(parents=True)

    def commit(self, step: int) -> Path:
        """The folder that now counts as the checkpoint of `step`."""
        source, target = self.writing(step), self.root / _name(step)
        _seal(source)
        self.require_ours()
        if target.exists():
            # of a start that was overtaken between its last check and its renaming
            _set_aside(target)
        source.rename(target)
        _link(self.root, "latest", target.name)
        best = self._best()
        if best is not None:
            _link(self.root, "best", best.name)
        _sync(self.root)
        for old in self._superfluous(best):
            # a name that does not count, first: half a folder must not look damaged
            doomed = old.with_name(f".writing_{old.name}")
            old.rename(doomed)
            shutil.rmtree(doomed)
        return target

    def newest_complete(self) -> tuple[Path | None, tuple[str, ...]]:
        """The newest undamaged checkpoint, and what is wrong with each newer one.

        Raises:
            CheckpointError: there are checkpoints, and all of them are damaged.
        """
        complaints = []
        for folder in self._folders():
            try:
                verify(folder)
            except CheckpointError as error:
                complaints.append(str(error))
                _log.warning("%s The one before it is used.", error)
            else:
                return folder, tuple(complaints)
        if complaints:
            raise CheckpointError(
                f"checkpoint: {self.root} must hold an undamaged checkpoint; all "
                f"{len(complaints)} are damaged: {' '.join(complaints)} Restore one of them, or "
                "remove the folder to start again."
            )
        return None, ()

    def set_aside_after(self, step: int) -> None:
        """Take checkpoints of later steps out of the way: those steps are taken again."""
        for folder in self._folders():
            if step_of(folder) > step:
                _set_aside(folder)

    def _superfluous(self, best: Path | None) -> list[Path]:
        """What none of the rules of `CheckpointConfig` keeps."""
        every = self._retention.keep_every_steps
        return [
            folder
            for folder in list(self._folders())[self._retention.keep_last :]
            if folder != best and not (every and step_of(folder) % every == 0)
        ]

    def _best(self) -> Path | None:
        """The checkpoint with the best value of `keep_best`, of equals the newest."""
        name = self._retention.keep_best
        if not name:
            return None
        sign = 1 if self._retention.best_is == "highest" else -1
        values = {folder: _metric(folder, name) for folder in self._folders()}
        known = {folder: value for folder, value in values.items() if value is not None}
        return max(known, key=lambda folder: sign * known[folder], default=None)

    def _folders(self) -> Iterator[Path]:
        yield from sorted(self.root.glob("step_*"), key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The number of steps that a checkpoint was written after, from its name."""
    return int(folder.name.removeprefix("step_"))


def verify(folder: Path) -> None:
    """Return if every file of a checkpoint is there and is what was written.

    Raises:
        CheckpointError: naming the folder and the first file that is missing or damaged.
    """
    manifest = folder / MANIFEST
    if not (folder / COMPLETE).is_file() or not manifest.is_file():
        raise CheckpointError(
            f"checkpoint: {folder} must have {COMPLETE} and {MANIFEST}; it was not finished."
        )
    if _digest(manifest) != (folder / COMPLETE).read_text().strip():
        raise CheckpointError(f"checkpoint: {manifest} is damaged: its checksum differs.")
    for name, entry in json.loads(manifest.read_text())["files"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint: {file} is missing.")
        if file.stat().st_size != entry["bytes"] or _digest(file) != entry["sha256"]:
            raise CheckpointError(f"checkpoint: {file} is damaged: its checksum differs.")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; names that share one tensor are stored once."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    places: dict[tuple, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        first = places.setdefault(place, name) if tensor.numel() else name
        if first == name:
            kept[name] = tensor.detach().contiguous().cpu()
        else:
            aliases[name] = first
    save_file(kept, path, metadata={"aliases": json.dumps(aliases)})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What `write_tensors` wrote, on the CPU, shared names included."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
    return tensors | {name: tensors[first] for name, first in aliases.items()}


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a file in one instant."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(f"aside_{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def _seal(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {}
    for path in files:
        _sync(path)
        name = path.relative_to(folder).as_posix()
        entries[name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": entries}, indent=1))
    _sync(manifest)
    (folder / COMPLETE).write_text(_digest(manifest))
    _sync(folder / COMPLETE)
    _sync(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's names, before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _metric(folder: Path, name: str) -> float | None:
    try:
        return json.loads((folder / "state.json").read_text()).get("metrics", {}).get(name)
    except (OSError, json.JSONDecodeError):
        # damage is for `verify` to report; here it only cannot be the best
        return None


def _link(root: Path, link_name: str, name: str) -> None:
    link = root / f".{link_name}.partial"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    link.replace(root / link_name)
