"""REFER's list of referring expressions, read from its pickle without running code from it."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.errors import DataError

# what a list of plain records may be made of; Python 2 files name the module `__builtin__`
_SAFE_NAMES = {"set", "frozenset", "list", "dict", "tuple", "str", "int", "float", "bool", "bytes"}
_SAFE_MODULES = {"builtins", "__builtin__"}


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One referring expression; `kind` is `attribute`, `relation`, or empty where unknown."""

    id: int
    text: str
    raw: str
    kind: str = ""
    is_relation_needed: bool = False
    is_heldout: bool = False


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The sentences about one annotation, as in REFER's file."""

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: tuple[Sentence, ...]


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if module in _SAFE_MODULES and name in _SAFE_NAMES:
            return super().find_class("builtins", name)
        raise DataError(
            f"{self.path}: a REFER pickle may hold only lists, dicts, strings and numbers; "
            f"got {module}.{name}. Do not load this file; get it again from its source."
        )


def read_references(path: Path) -> tuple[Reference, ...]:
    """References in file order, all splits together.

    Raises:
        DataError: the pickle names anything but plain containers, is damaged, or an entry
            lacks a field.
    """
    try:
        with path.open("rb") as file:
            entries = _PlainUnpickler(file, path).load()
    except DataError:
        raise
    # a damaged pickle can raise nearly anything, from EOFError to AttributeError
    except Exception as error:
        raise DataError(f"{path}: not a readable pickle ({error}). Get the file again.") from error
    if not isinstance(entries, list):
        raise DataError(
            f"{path}: a REFER pickle must hold a list of refs; got {type(entries).__name__}."
        )
    return tuple(_reference(path, index, entry) for index, entry in enumerate(entries))


def _reference(path: Path, index: int, entry: Any) -> Reference:
    try:
        return Reference(
            ref_id=int(entry["ref_id"]),
            ann_id=int(entry["ann_id"]),
            image_id=int(entry["image_id"]),
            split=str(entry["split"]),
            sentences=tuple(_sentence(sentence) for sentence in entry["sentences"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: ref {index} must have ref_id, ann_id, image_id, split and sentences "
            f"[sent_id, sent]; got {error!r}."
        ) from error


def _sentence(entry: dict[str, Any]) -> Sentence:
    return Sentence(
        id=int(entry["sent_id"]),
        text=str(entry["sent"]),
        raw=str(entry.get("raw", entry["sent"])),
        kind=str(entry.get("kind", "")),
        is_relation_needed=bool(entry.get("is_relation_needed", False)),
        is_heldout=bool(entry.get("is_heldout", False)),
    )
