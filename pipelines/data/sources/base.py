"""What a source is: a named data set, the files that it consists of, and how they are read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.data.records import (
    UNKNOWN_SIZE_HW,
    Category,
    CocoRecord,
    CocoSplit,
    LabelMap,
)
from pipelines.errors import ConfigError, DataError

VOCABULARIES = Path(__file__).resolve().parents[1] / "vocabularies"


@dataclass(frozen=True, kw_only=True)
class NeededFile:
    """A file of a data set and the address where its owner gives it out.

    path: relative to the root, may hold `*`, `{split}`, `{split_by}` and `{folder}`, which is what
    the owner calls the split; several names for the same thing are separated by `|`.
    is_image: needed neither where `--images` names a folder nor to know which images a split has.
    """

    path: str
    url: str
    is_image: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which part of a data set is wanted, and where it lies.

    images: where images are, for lists whose images belong to another data set.
    split_by: which of several ways to split (RefCOCO). refer: REFER's folder of one data set, for
    phrases beside other annotations. class_list: names of classes.
    """

    root: Path
    split: str
    images: Path | None = None
    split_by: str = ""
    refer: Path | None = None
    class_list: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A named data set.

    splits: the parts that it has, empty = those that its folder shows. split_bys: the ways to split
    it, the usual one first. folders: what the owner calls a split, where it is another name. takes:
    options of the request that it understands.
    """

    name: str
    description: str
    licence: str
    url: str
    files: tuple[NeededFile, ...]
    read_split: Callable[[Request], CocoSplit]
    splits: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)
    split_bys: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()

    def read(self, request: Request, *, with_images: bool = True) -> CocoSplit:
        """The records of a split; with_images: their pictures must be there.

        Raises:
            ConfigError: there is no such split.
            DataError: files are missing, each named with its place and its address; or damaged.
        """
        if not request.root.is_dir():
            raise DataError(
                f"prepare {self.name}: root must be a folder; got {request.root}. "
                f"{self.name} is given out at {self.url}."
            )
        if self.splits and request.split not in self.splits:
            raise ConfigError(
                f"prepare {self.name}: --split must be one of {', '.join(self.splits)}; "
                f"got {request.split!r}."
            )
        if self.split_bys and request.split_by not in self.split_bys:
            raise ConfigError(
                f"prepare {self.name}: --split-by must be one of {', '.join(self.split_bys)}; "
                f"got {request.split_by!r}."
            )
        missing = self.missing_files(request, with_images=with_images)
        if missing:
            raise DataError(
                "\n".join(
                    (
                        f"prepare {self.name}: files are missing; get them and try again.",
                        *(f"  {path}   from {url}" for path, url in missing),
                    )
                )
            )
        return self.read_split(request)

    def missing_files(
        self, request: Request, *, with_images: bool = True
    ) -> tuple[tuple[Path, str], ...]:
        """The files that are not where they belong, and where their owner gives them out."""
        missing = []
        folder = self.folders.get(request.split, request.split)
        for needed in self.files:
            if needed.is_image and (request.images is not None or not with_images):
                continue
            names = [
                name.format(split=request.split, split_by=request.split_by, folder=folder)
                for name in needed.path.split("|")
            ]
            if not any(_exists(request.root, name) for name in names):
                missing.append((request.root / names[0], needed.url))
        return tuple(missing)


def _exists(root: Path, name: str) -> bool:
    return next(iter(root.glob(name)), None) is not None


def read_names(path: Path) -> tuple[tuple[int, str], ...]:
    """Numbers and names of classes: lines `3<TAB>name`, or `name` numbered from 1.

    Raises:
        DataError: the file is missing, or a line does not fit.
    """
    if not path.is_file():
        raise DataError(f"{path}: must be a file with one class on each line; there is none.")
    entries: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        first, separator, rest = line.strip().partition("\t")
        if separator and not first.isdigit():
            raise DataError(f"{path}: a line must be `name` or `number<TAB>name`; got {line!r}.")
        number = int(first) if separator else len(entries) + 1
        entries.append((number, rest if separator else first))
    return tuple(entries)


def stuff_categories(entries: tuple[tuple[int, str], ...]) -> tuple[Category, ...]:
    """Classes of a semantic label map, none of which is counted."""
    return tuple(Category(id=number, name=name, is_thing=False) for number, name in entries)


def labelled_split(
    request: Request,
    pictures: Iterable[tuple[str, Path, LabelMap]],
    categories: Sequence[Category],
    *,
    space: str,
    annotation_files: tuple[Path, ...] = (),
) -> CocoSplit:
    """A split of key, image and label map; `space` is whose names the keys are."""
    return CocoSplit(
        name=request.split,
        records=tuple(
            CocoRecord(
                image_id=number,
                image_path=image,
                size_hw=UNKNOWN_SIZE_HW,
                key=key,
                label_map=label_map,
                identities=(f"{space}:{key}",),
            )
            for number, (key, image, label_map) in enumerate(pictures)
        ),
        panoptic_categories=tuple(categories),
        annotation_files=annotation_files,
    )


def first_words(entries: tuple[tuple[int, str], ...]) -> tuple[tuple[int, str], ...]:
    """Names cut to their first synonym where that leaves them different from each other."""
    firsts = [name.partition(",")[0].strip() for _, name in entries]
    return tuple(
        (number, first if firsts.count(first) == 1 else name)
        for (number, name), first in zip(entries, firsts, strict=True)
    )


def files_by_stem(folder: Path, pattern: str) -> dict[str, Path]:
    """The files of a folder by their names without ending, in order."""
    return {path.name.partition(".")[0]: path for path in sorted(folder.glob(pattern))}


def listed_stems(path: Path) -> tuple[str, ...]:
    """The first word of each line of a list of images."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.split()[0] for line in lines if line.strip())
