"""The evaluation sets that `--protect` knows by name, and where their images are listed."""

from collections.abc import Sequence
from dataclasses import dataclass
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
from pipelines.data.sources import Request, Source, source_named
from pipelines.errors import DataError


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A split of a source, with the name of the source."""

    source: str
    split: str
    split_by: str = ""

    def request(self, root: Path, images: Path | None) -> Request:
        """What to ask of its source at this root."""
        takes_images = "images" in source_named(self.source).takes
        return Request(
            root=root,
            split=self.split,
            split_by=self.split_by,
            images=images if takes_images else None,
        )


EVALUATION_SETS: dict[str, EvaluationSet] = {
    **{
        f"{name}-unc-{split}": EvaluationSet(source=name, split=split, split_by="unc")
        for name in ("refcoco", "refcoco+")
        for split in ("val", "testA", "testB")
    },
    "refcocog-umd-val": EvaluationSet(source="refcocog", split="val", split_by="umd"),
    "refcocog-umd-test": EvaluationSet(source="refcocog", split="test", split_by="umd"),
    "refcocog-google-val": EvaluationSet(source="refcocog", split="val", split_by="google"),
    "karpathy-val": EvaluationSet(source="coco-karpathy", split="val"),
    "karpathy-test": EvaluationSet(source="coco-karpathy", split="test"),
    "coco-2017-val": EvaluationSet(source="coco", split="val2017"),
    "coco-2014-val": EvaluationSet(source="coco", split="val2014"),
    "flickr30k-val": EvaluationSet(source="flickr30k", split="val"),
    "flickr30k-test": EvaluationSet(source="flickr30k", split="test"),
    "ade20k-val": EvaluationSet(source="ade20k-150", split="val"),
    "cityscapes-val": EvaluationSet(source="cityscapes", split="val"),
    "bdd10k-val": EvaluationSet(source="bdd10k", split="val"),
    "scannet-val": EvaluationSet(source="scannet25k-20", split="val"),
    "sunrgbd-test": EvaluationSet(source="sunrgbd-37", split="test"),
    "voc2012-val": EvaluationSet(source="voc2012", split="val"),
    "pascal-context-val": EvaluationSet(source="pascal-context-59", split="val"),
}
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
        request = wanted.request(root, images)
        if root.is_dir() and not source.missing_files(request, with_images=False):
            return protected_images(name, source.read(request, with_images=False))
    raise DataError(_missing(name, source, wanted, roots))


def _missing(name: str, source: Source, wanted: EvaluationSet, roots: Sequence[Path]) -> str:
    lines = [f"--protect {name}: the list of its images is missing; it may lie at any of"]
    for root in roots:
        for path, url in source.missing_files(wanted.request(root, None), with_images=False):
            lines.append(f"  {path}   from {url}")
    lines.append("Say where it is with --protect-root FOLDER.")
    return "\n".join(lines)
