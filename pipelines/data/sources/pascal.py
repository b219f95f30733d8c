"""Pascal VOC 2012, and Pascal Context with 59 or 459 classes.

    voc2012             ROOT = VOCdevkit/VOC2012: JPEGImages, SegmentationClass, SegmentationObject,
                        ImageSets/Segmentation/{train,val}.txt
    pascal-context-*    ROOT = VOCdevkit/VOC2010: JPEGImages, ImageSets/Main/{train,val}.txt, and
                        the label maps and lists of classes of the Context release, unpacked here:
                        trainval/*.mat, labels.txt, 59_labels.txt

VOC's unlabelled ground stays unlabelled: it is no class.
"""

from functools import partial
from pathlib import Path

from pipelines.data.records import Category, CocoSplit, LabelMap
from pipelines.data.sources.base import (
    VOCABULARIES,
    NeededFile,
    Request,
    Source,
    labelled_split,
    listed_stems,
    read_names,
    stuff_categories,
)
from pipelines.errors import DataError

_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
_VOC_2010 = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar"
_CONTEXT = "https://cs.stanford.edu/~roozbeh/pascal-context/"
_LICENCE = "annotations free for research; images under Flickr's terms"


def _read_voc(request: Request) -> CocoSplit:
    entries = read_names(VOCABULARIES / "voc_20.txt")
    list_path = request.root / "ImageSets" / "Segmentation" / f"{request.split}.txt"
    category_of = {number: number for number, _ in entries}
    root = request.root

    def labels(stem: str) -> LabelMap:
        return LabelMap(
            path=root / "SegmentationClass" / f"{stem}.png",
            code="class_and_object",
            category_of=category_of,
            object_path=root / "SegmentationObject" / f"{stem}.png",
        )

    return labelled_split(
        request,
        ((stem, _image(root, stem), labels(stem)) for stem in listed_stems(list_path)),
        [Category(id=number, name=name, is_thing=True) for number, name in entries],
        space="voc",
        annotation_files=(list_path,),
    )


def _read_context(num_classes: int, request: Request) -> CocoSplit:
    all_names = _label_list(request.root / "labels.txt")
    number_of = {name: number for number, name in all_names}
    entries = all_names if num_classes == len(all_names) else _few_names(request.root, number_of)
    list_path = request.root / "ImageSets" / "Main" / f"{request.split}.txt"
    labels = request.root / "trainval"
    stems = [stem for stem in listed_stems(list_path) if (labels / f"{stem}.mat").exists()]
    category_of = {number: number for number, _ in entries}
    return labelled_split(
        request,
        (
            (
                stem,
                _image(request.root, stem),
                LabelMap(path=labels / f"{stem}.mat", code="mat", category_of=category_of),
            )
            for stem in stems
        ),
        stuff_categories(entries),
        space="voc",
        annotation_files=(list_path, request.root / "labels.txt"),
    )


def _image(root: Path, stem: str) -> Path:
    return root / "JPEGImages" / f"{stem}.jpg"


def _few_names(root: Path, number_of: dict[str, int]) -> tuple[tuple[int, str], ...]:
    path = root / "59_labels.txt"
    names = [name for _, name in _label_list(path)]
    unknown = [name for name in names if name not in number_of]
    if unknown:
        raise DataError(f"{path}: classes must be among those of labels.txt; got {unknown}.")
    return tuple((number_of[name], name) for name in names)


def _label_list(path: Path) -> tuple[tuple[int, str], ...]:
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        number, separator, name = line.partition(":")
        if line.strip() and not (separator and number.strip().isdigit()):
            raise DataError(f"{path}: a line must be `number: name`; got {line!r}.")
        # 0 is what has no class
        if line.strip() and int(number) > 0:
            entries.append((int(number), name.strip()))
    return tuple(entries)


def _context(num_classes: int) -> Source:
    few = (NeededFile(path="59_labels.txt", url=_CONTEXT),) if num_classes == 59 else ()
    return Source(
        name=f"pascal-context-{num_classes}",
        description=f"{num_classes} classes as regions, every pixel labelled",
        licence=_LICENCE,
        url=_CONTEXT,
        files=(
            NeededFile(path="JPEGImages/*.jpg", url=_VOC_2010, is_image=True),
            NeededFile(path="ImageSets/Main/{split}.txt", url=_VOC_2010),
            NeededFile(path="trainval/*.mat", url=_CONTEXT),
            NeededFile(path="labels.txt", url=_CONTEXT),
            *few,
        ),
        read_split=partial(_read_context, num_classes),
        splits=("train", "val"),
    )


SOURCES = (
    Source(
        name="voc2012",
        description="20 classes of things",
        licence=_LICENCE,
        url=_VOC,
        files=tuple(
            NeededFile(path=path, url=_VOC, is_image=path.startswith("JPEGImages"))
            for path in (
                "JPEGImages/*.jpg",
                "SegmentationClass/*.png",
                "SegmentationObject/*.png",
                "ImageSets/Segmentation/{split}.txt",
            )
        ),
        read_split=_read_voc,
        splits=("train", "val", "trainval"),
    ),
    _context(59),
    _context(459),
)
