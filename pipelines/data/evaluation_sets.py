"""The images of evaluation sets that `--protect` knows by name, found below the given roots."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.data.protection import (
    GROUPS,
    ImageFilter,
    ProtectedImages,
    check_names,
    expanded,
    protected_images,
    protected_path,
)
from pipelines.data.sources import EVALUATION_SETS, EvaluationSet, Request, Source, source_named
from pipelines.errors import DataError

# where images of COCO may lie below a root, for lists that come without them
_COCO_FOLDERS = (
    "train2014",
    "train2017",
    "images/train2014",
    "images/train2017",
    "images/mscoco/images/train2014",
)


def read_protection(texts: Sequence[str], roots: Sequence[Path]) -> ImageFilter:
    """What must be left out, for names, groups and paths; lists are looked for below the roots.

    Raises:
        ConfigError: a name is unknown.
        DataError: the files of a set are not there; the message names them, their places, and
            where they are given out.
    """
    sets = []
    for text in expanded(texts):
        images = protected_path(text)
        if images is None:
            check_names((text,), (*EVALUATION_SETS, *GROUPS))
            images = _named(text, roots)
        sets.append(images)
    return ImageFilter.of(sets)


def _named(name: str, roots: Sequence[Path]) -> ProtectedImages:
    wanted = EVALUATION_SETS[name]
    source = source_named(wanted.source)
    folders = (root / folder for root in roots for folder in _COCO_FOLDERS)
    images = next((folder for folder in folders if folder.is_dir()), None)
    if wanted.source == "coco-karpathy":
        # its images are in two folders, which its own list names
        images = None
    for root in roots:
        request = _request(source, wanted, root, images)
        if root.is_dir() and not source.missing_files(request, with_images=False):
            return protected_images(name, source.read(request, with_images=False))
    raise DataError(_missing(name, source, wanted, roots))


def _missing(name: str, source: Source, wanted: EvaluationSet, roots: Sequence[Path]) -> str:
    lines = [f"--protect {name}: the list of its images is missing; it may lie at any of"]
    for root in roots:
        for path, url in source.missing_files(
            _request(source, wanted, root, None), with_images=False
        ):
            lines.append(f"  {path}   from {url}")
    lines.append("Say where it is with --protect-root FOLDER.")
    return "\n".join(lines)


def _request(source: Source, wanted: EvaluationSet, root: Path, images: Path | None) -> Request:
    return Request(
        root=root,
        split=wanted.split,
        split_by=wanted.split_by,
        images=images if "images" in source.takes else None,
    )
