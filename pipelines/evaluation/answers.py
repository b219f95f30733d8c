"""Answers of a model, kept in files while an evaluation runs: what resuming and ranks share.

    <folder>/chunk_000000.json, chunk_000001.json, ...    one for each batch of images

The batches do not depend on the number of ranks, so neither do the answers.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

from pipelines.engine.checkpoint_files import write_text_atomically
from pipelines.evaluation.stage import Answer

# by stage, in the order of the images that the stage wants
ChunkAnswers = dict[str, list[Answer]]


class Answers(Protocol):
    """Where the answers of each chunk are put and found again."""

    def read(self, index: int) -> ChunkAnswers | None:
        """The answers of a chunk, None where it must be asked."""
        ...

    def write(self, index: int, answers: ChunkAnswers) -> None:
        """Keep the answers of a chunk."""
        ...


class MemoryAnswers:
    """Answers of one process that need not survive it."""

    def __init__(self) -> None:
        self._chunks: dict[int, ChunkAnswers] = {}

    def read(self, index: int) -> ChunkAnswers | None:
        """The answers of a chunk, None where it must be asked."""
        return self._chunks.get(index)

    def write(self, index: int, answers: ChunkAnswers) -> None:
        """Keep the answers of a chunk."""
        self._chunks[index] = answers


class FileAnswers:
    """Answers in a folder that all ranks see and that outlives a killed evaluation."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, index: int) -> ChunkAnswers | None:
        """The answers of a chunk, None where it must be asked (also where its file is damaged)."""
        path = self._path(index)
        if not path.is_file():
            return None
        try:
            content: Any = json.loads(path.read_text())
        except ValueError:
            return None
        return content if isinstance(content, dict) else None

    def write(self, index: int, answers: ChunkAnswers) -> None:
        """Keep the answers of a chunk."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self._path(index), json.dumps(answers))

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self._folder / f"chunk_{index:06d}.json"
