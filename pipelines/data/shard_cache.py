"""Remote files on this node: fetched whole, checked, and bounded together.

    CACHE/<sha256>            a complete file; its time of change is when it was last used
    CACHE/<sha256>.partial    being fetched, at its final size from the start, so that it counts
    CACHE/locks/<sha256>      held by the one process that fetches it
    CACHE/locks/room          held while somebody counts bytes and removes what was used longest ago

Names are checksums of contents, so a file that is there is the right one, whoever fetched it. A
process that has a removed file open reads on.
"""

import fcntl
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import fsspec

from pipelines.errors import ConfigError, DataError

# seconds before another attempt, for networks that fail now and then
_PAUSES = (1.0, 5.0, 15.0)
_CHUNK = 1 << 20
_WAIT_FOR_ROOM = 0.2
_PARTIAL = ".partial"


def default_cache_folder() -> Path:
    """Where remote shards go unless `data.cache_dir` says: $XDEC_DATA_CACHE, or a folder of TMP."""
    named = os.environ.get("XDEC_DATA_CACHE", "")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"xdecoder-shards-{os.getuid()}"


def read_remote(url: str) -> bytes:
    """The contents of a small remote file.

    Raises:
        DataError: it cannot be read; the message names the URL.
    """
    for pause in (*_PAUSES, None):
        try:
            with _open_remote(url) as file:
                return file.read()
        except OSError as error:
            _pause_or_refuse(url, error, pause)
    raise AssertionError("the last attempt returns or raises")


class ShardCache:
    """At most `max_bytes` of remote files in a folder that all processes of a node share."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        try:
            (folder / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"data.cache_dir must be a folder that can be written; {folder} cannot "
                f"({error.strerror}). Set data.cache_dir or XDEC_DATA_CACHE."
            ) from error

    def fetch(self, url: str, *, sha256: str, num_bytes: int | None = None) -> Path:
        """The local copy of a remote file, which counts as used now.

        num_bytes: its size, None = ask for it.

        Raises:
            DataError: the file cannot be fetched, or is not the one that the manifest means.
        """
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise DataError(
                f"{url}: its checksum in the manifest must be SHA-256 in hexadecimal digits; got "
                f"{sha256!r}. Prepare the shards again."
            )
        path = self.folder / sha256
        if _mark_used(path):
            return path
        with self._lock(sha256):
            # another process may have fetched it in the meantime
            if not _mark_used(path):
                size = _remote_size(url) if num_bytes is None else num_bytes
                self._fetch(url, path, sha256=sha256, num_bytes=size)
        return path

    def _fetch(self, url: str, path: Path, *, sha256: str, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise ConfigError(
                f"data.cache_gib: {self.folder} must have room for {url} ({num_bytes} bytes); it "
                f"has {self.max_bytes}. Raise data.cache_gib."
            )
        partial = path.with_name(path.name + _PARTIAL)
        try:
            for pause in (*_PAUSES, None):
                self._reserve(partial, num_bytes)
                try:
                    found = _download(url, partial)
                    break
                except OSError as error:
                    _pause_or_refuse(url, error, pause)
            if found != (sha256, num_bytes):
                raise DataError(
                    f"{url}: must have {num_bytes} bytes and checksum {sha256}, as its manifest "
                    f"says; got {found[1]} and {found[0]}. Upload the shards and manifest again."
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _reserve(self, partial: Path, num_bytes: int) -> None:
        """Make room for a file and take it, before any of its bytes are there."""
        partial.unlink(missing_ok=True)
        # others may be fetching what fills the folder; complete files can be removed
        while not self._has_taken(partial, num_bytes):
            time.sleep(_WAIT_FOR_ROOM)

    def _has_taken(self, partial: Path, num_bytes: int) -> bool:
        with self._lock("room"):
            if not self._remove_oldest(num_bytes):
                return False
            with partial.open("wb") as file:
                file.truncate(num_bytes)
            return True

    def _remove_oldest(self, num_bytes: int) -> bool:
        """Whether so many bytes are free, after removing complete files as far as needed."""
        files = [(entry, facts) for entry in self.folder.iterdir() if (facts := _facts(entry))]
        used = sum(facts.st_size for _, facts in files)
        complete = [item for item in files if item[0].suffix != _PARTIAL]
        complete.sort(key=lambda item: item[1].st_mtime_ns)
        for entry, facts in files:
            if entry.suffix == _PARTIAL and self._is_abandoned(entry):
                entry.unlink(missing_ok=True)
                used -= facts.st_size
        for entry, facts in complete:
            if used + num_bytes <= self.max_bytes:
                break
            entry.unlink(missing_ok=True)
            used -= facts.st_size
        return used + num_bytes <= self.max_bytes

    def _is_abandoned(self, partial: Path) -> bool:
        """Whether the process that fetched it is gone; locks end with their process."""
        with (self.folder / "locks" / partial.stem).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (self.folder / "locks" / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _facts(entry: Path) -> os.stat_result | None:
    """What a file is like; None for a folder, and for a file that was just renamed."""
    try:
        facts = entry.stat()
    except FileNotFoundError:
        return None
    return facts if stat.S_ISREG(facts.st_mode) else None


def _mark_used(path: Path) -> bool:
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _remote_size(url: str) -> int:
    for pause in (*_PAUSES, None):
        try:
            with _open_remote(url) as file:
                return file.seek(0, os.SEEK_END)
        except OSError as error:
            _pause_or_refuse(url, error, pause)
    raise AssertionError("the last attempt returns or raises")


def _download(url: str, partial: Path) -> tuple[str, int]:
    """Checksum and number of the bytes that came."""
    digest, num_bytes = hashlib.sha256(), 0
    with _open_remote(url) as source, partial.open("r+b") as target:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            num_bytes += len(chunk)
            target.write(chunk)
        target.truncate(num_bytes)
    return digest.hexdigest(), num_bytes


@contextmanager
def _open_remote(url: str) -> Iterator[IO[bytes]]:
    # a fresh instance each time: many file systems must not be used on both sides of a fork
    try:
        system, path = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{url}: its protocol must be one that fsspec knows and has installed ({error}). "
            "Install the package that it names, or copy the shards to a local folder."
        ) from error
    try:
        with system.open(path, "rb") as file:
            yield file
    except (OSError, DataError):
        raise
    except Exception as error:
        # every service has errors of its own, of no common class
        raise OSError(f"{type(error).__name__}: {error}") from error


def _pause_or_refuse(url: str, error: OSError, pause: float | None) -> None:
    is_final = isinstance(error, FileNotFoundError | PermissionError)
    if pause is None or is_final:
        raise DataError(
            f"{url}: cannot be read ({type(error).__name__}: {error}). Look at the address, the "
            "credentials and the network of this node."
        ) from error
    time.sleep(pause)
