"""Pictures by their paths: files and folders in, names for what is written about each out."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image
from rich.console import Console
from rich.progress import track

from pipelines.errors import DataError
from pipelines.evaluation.images import read_image
from xdecoder.images import ImageArray

Item = TypeVar("Item")


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as they are named, and all pictures below folders, each once, in a stable order.

    Raises:
        DataError: a folder without a picture.
    """
    suffixes = set(Image.registered_extensions())
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None
            continue
        below = sorted(each for each in path.rglob("*") if each.suffix.lower() in suffixes)
        if not below:
            raise DataError(f"{path}: must have a picture in it; it has none. Name another folder.")
        found |= dict.fromkeys(below)
    return list(found)


def output_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for the files about each picture: its stem, with a mark where two share one."""
    counts = Counter(path.stem for path in paths)
    marks = {path: hashlib.sha256(str(path).encode()).hexdigest()[:6] for path in paths}
    return {
        path: path.stem if counts[path.stem] == 1 else f"{path.stem}_{marks[path]}"
        for path in paths
    }


class Broken:
    """Collects what could not be read, so that the rest can be done first."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def read(self, paths: Iterable[Path]) -> Iterator[tuple[Path, ImageArray]]:
        """Each picture that can be read."""
        for path in paths:
            image = self.attempt(lambda path=path: read_image(path))  # type: ignore[misc]
            if image is not None:
                yield path, image

    def attempt(self, action: Callable[[], Item]) -> Item | None:
        """What the action returns, or None where a picture is broken."""
        try:
            return action()
        except DataError as error:
            self.messages.append(str(error))
            return None

    def complain(self, num_all: int) -> None:
        """Return if nothing was broken.

        Raises:
            DataError: naming every picture that was.
        """
        if self.messages:
            lines = "\n  ".join(self.messages)
            raise DataError(
                f"{len(self.messages)} of {num_all} pictures could not be used:\n  {lines}"
            )


def with_progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a bar on the terminal while they are taken."""
    console = Console(stderr=True)
    is_shown = console.is_terminal and len(items) > 1
    return track(items, what, console=console, transient=True) if is_shown else items
