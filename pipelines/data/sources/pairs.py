"""Images with one text from the web: Conceptual Captions, SBU, and whatever img2dataset fetched.

ROOT is one of

    what img2dataset wrote with --output_format webdataset    00000.tar, 00001.tar, ...
    what it wrote with --output_format files                  00000/000000000.{jpg,txt}, ...
    the data set's own list, and images/ (or --images)        row n is images/%09d.jpg, or
                                                              images/%05d/%09d.jpg in tens of
                                                              thousands

Downloading is img2dataset's job. Pictures that were gone, or that do not open, are counted and left
out. Records are made when they are packed, so that millions of them need little memory.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy import ndarray

from pipelines.data.coco import flickr_identities
from pipelines.data.records import UNKNOWN_SIZE_HW, CocoRecord, CocoSplit
from pipelines.data.sources.base import NeededFile, Request, Source
from pipelines.errors import DataError

# of a large file in memory at once
_CHUNK_BYTES = 64 << 20
# of one folder or tar of img2dataset
_PER_FOLDER = 10_000
_TEXTS = "[0-9]*/*.txt"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, kw_only=True)
class TextList:
    """Where a data set's own list has its texts and addresses: file and column of each."""

    texts: str
    text_column: int
    urls: str
    url_column: int


class LineFile(Sequence[str]):
    """The lines of a large file, read when asked for."""

    def __init__(self, path: Path) -> None:
        self._bytes = np.memmap(path, np.uint8, mode="r")
        size = len(self._bytes)
        ends = [
            np.flatnonzero(self._bytes[first : first + _CHUNK_BYTES] == ord("\n")) + first + 1
            for first in range(0, size, _CHUNK_BYTES)
        ]
        # a last line may lack its end
        self._starts = np.unique(np.concatenate([[0], *ends, [size]]))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: int) -> str:  # type: ignore[override]
        line = self._bytes[self._starts[row] : self._starts[row + 1]].tobytes()
        return line.decode("utf-8", errors="replace").rstrip("\r\n")


class ListedPairs(Sequence[CocoRecord]):
    """The rows of a list, each with the image of its number."""

    def __init__(self, texts: LineFile, urls: LineFile, columns: TextList, images: Path) -> None:
        self._texts, self._urls, self._columns = texts, urls, columns
        self._images = images
        self._is_nested = (images / "00000").is_dir()

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: int) -> CocoRecord:  # type: ignore[override]
        row = int(row)
        folder = f"{row // _PER_FOLDER:05d}/" if self._is_nested else ""
        url = _column(self._urls[row], self._columns.url_column)
        return CocoRecord(
            image_id=row,
            image_path=self._images / f"{folder}{row:09d}.jpg",
            size_hw=UNKNOWN_SIZE_HW,
            captions=(_column(self._texts[row], self._columns.text_column),),
            identities=flickr_identities(url),
        )


class FilePairs(Sequence[CocoRecord]):
    """Images with a text file of the same name beside each."""

    def __init__(self, texts: Sequence[Path]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: int) -> CocoRecord:  # type: ignore[override]
        path = self._texts[row]
        images = [path.with_suffix(suffix) for suffix in _IMAGE_SUFFIXES]
        about = path.with_suffix(".json")
        return CocoRecord(
            image_id=int(row),
            image_path=next((image for image in images if image.exists()), images[0]),
            size_hw=UNKNOWN_SIZE_HW,
            captions=(path.read_text(encoding="utf-8").strip(),),
            key=_key(path.stem),
            identities=_identities(about.read_bytes() if about.exists() else b""),
        )


class TarPairs(Sequence[CocoRecord]):
    """Images and texts inside tars, found by one pass over the headers."""

    def __init__(self, tars: Sequence[Path]) -> None:
        self._tars = tars
        tables = [_tar_table(number, path) for number, path in enumerate(tars)]
        self._rows = np.concatenate([rows for rows, _ in tables])
        self._keys = [key for _, keys in tables for key in keys]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> CocoRecord:  # type: ignore[override]
        tar, image_at, image_bytes, text_at, text_bytes, about_at, about_bytes = (
            int(value) for value in self._rows[row]
        )
        path = self._tars[tar]
        with path.open("rb") as file:
            text, about = (
                os.pread(file.fileno(), num_bytes, place)
                for num_bytes, place in ((text_bytes, text_at), (about_bytes, about_at))
            )
        return CocoRecord(
            image_id=int(row),
            image_path=path,
            image_range=(image_at, image_bytes),
            size_hw=UNKNOWN_SIZE_HW,
            captions=(text.decode("utf-8", errors="replace").strip(),),
            key=self._keys[row],
            identities=_identities(about),
        )


def _column(line: str, number: int) -> str:
    columns = line.split("\t")
    return columns[number].strip() if number < len(columns) else ""


def _identities(about: bytes) -> tuple[str, ...]:
    """Of an image from what img2dataset wrote about it."""
    try:
        return flickr_identities(str(json.loads(about)["url"])) if about else ()
    except (ValueError, KeyError, TypeError):
        return ()


def _tar_table(number: int, path: Path) -> tuple[ndarray, list[str]]:
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = Path(member.name)
                kind = "image" if name.suffix.lower() in _IMAGE_SUFFIXES else name.suffix
                place = (member.offset_data, member.size)
                found.setdefault(name.stem, {})[kind] = place
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: not a readable tar ({error}). Fetch it again.") from error
    whole = {key: kinds for key, kinds in found.items() if {"image", ".txt"} <= kinds.keys()}
    rows = [
        (number, *kinds["image"], *kinds[".txt"], *kinds.get(".json", (0, 0)))
        for kinds in whole.values()
    ]
    return np.array(rows, np.int64).reshape(-1, 7), [_key(stem) for stem in whole]


def _key(stem: str) -> str:
    # a dot would end the key where the shard is read
    return stem.replace(".", "_")


def _read(lists: dict[str, TextList], request: Request) -> CocoSplit:
    images = request.images or request.root / "images"
    tars = sorted(request.root.glob("[0-9]*.tar"))
    # what img2dataset wrote beside a picture belongs to it, whatever the rows of a list are
    texts = [] if tars else sorted((*request.root.glob(_TEXTS), *images.glob(_TEXTS)))
    listed = lists.get(request.split)
    records: Sequence[CocoRecord]
    if tars:
        records, stamp = TarPairs(tars), _stamp(f"{t.name} {t.stat().st_size}" for t in tars)
    elif texts or listed is None:
        records, stamp = FilePairs(texts), _stamp(text.name for text in texts)
    else:
        files = [request.root / name for name in (listed.texts, listed.urls)]
        records = _listed(files[0], files[1], listed, images)
        stamp = _stamp(f"{file.name} {file.stat().st_size}" for file in files)
    return CocoSplit(name=request.split, records=records, is_complete=False, stamp=stamp)


def _listed(texts: Path, urls: Path, columns: TextList, images: Path) -> ListedPairs:
    if not images.is_dir():
        raise DataError(f"{images}: must be the folder of the images of {texts.name}; not there.")
    lines, addresses = LineFile(texts), LineFile(urls)
    if "://" not in addresses[0]:
        raise DataError(
            f"{urls}: the first line must be the first pair, with its address; got "
            f"{addresses[0][:80]!r}. Take a header away, or the images would get their neighbours' "
            "texts."
        )
    if len(lines) != len(addresses):
        raise DataError(
            f"{urls}: must have a line for each of the {len(lines)} of {texts.name}; "
            f"got {len(addresses)}."
        )
    return ListedPairs(lines, addresses, columns, images)


def _stamp(words: Iterable[str]) -> str:
    """Of names and sizes: reading gigabytes twice would take as long as packing them."""
    return hashlib.sha256("\n".join(words).encode("utf-8")).hexdigest()


def _source(name: str, url: str, lists: dict[str, TextList], *, what: str, licence: str) -> Source:
    own = "|".join(columns.texts for columns in lists.values())
    return Source(
        name=name,
        description=what,
        licence=licence,
        url=url,
        files=(
            NeededFile(
                path=f"{own}|[0-9]*.tar|[0-9]*/*.txt" if own else "[0-9]*.tar|[0-9]*/*.txt",
                url=f"{url} (the list; images by img2dataset, "
                "https://github.com/rom1504/img2dataset)",
            ),
        ),
        read_split=partial(_read, lists),
        splits=tuple(lists) or ("train",),
        takes=("images",),
    )


_CC3M_TRAIN = "Train_GCC-training.tsv"
_CC3M_VAL = "Validation_GCC-1.1.0-Validation.tsv"
_SBU = "SBU_captioned_photo_dataset"

SOURCES = (
    _source(
        "cc3m",
        "https://ai.google.com/research/ConceptualCaptions/download",
        {
            "train": TextList(texts=_CC3M_TRAIN, text_column=0, urls=_CC3M_TRAIN, url_column=1),
            "val": TextList(texts=_CC3M_VAL, text_column=0, urls=_CC3M_VAL, url_column=1),
        },
        what="3.3 million addresses with a text each, about 70 % of them still there",
        licence="list free for any purpose; images belong to their owners",
    ),
    _source(
        "cc12m",
        "https://github.com/google-research-datasets/conceptual-12m",
        {"train": TextList(texts="cc12m.tsv", text_column=1, urls="cc12m.tsv", url_column=0)},
        what="12 million addresses with a text each, about 63 % of them still there",
        licence="list free for any purpose; images belong to their owners",
    ),
    _source(
        "sbu",
        "https://www.cs.rice.edu/~vo9/sbucaptions/",
        {
            "train": TextList(
                texts=f"{_SBU}_captions.txt",
                text_column=0,
                urls=f"{_SBU}_urls.txt",
                url_column=0,
            )
        },
        what="a million of Flickr's photographs with their titles",
        licence="research; images under Flickr's terms",
    ),
    _source(
        "pairs",
        "one's own",
        {},
        what="any output of img2dataset",
        licence="as their owners say",
    ),
)
