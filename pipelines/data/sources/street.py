"""Street scenes: Cityscapes and the 10k images of BDD100K.

    cityscapes       ROOT/{leftImg8bit,gtFine}/SPLIT/CITY/*          19 classes, objects apart
    bdd10k           ROOT/images/10k/SPLIT/*.jpg, ROOT/labels/sem_seg/masks/SPLIT/*.png
    bdd10k-panoptic  the same images, ROOT/labels/pan_seg/bitmasks/SPLIT/*.png        40 classes

Cityscapes' pictures are PNG and become JPEG of quality 95 with full colour.
"""

from pathlib import Path

from pipelines.data.records import Category, CocoSplit, LabelCode, LabelMap
from pipelines.data.sources.base import (
    VOCABULARIES,
    NeededFile,
    Request,
    Source,
    labelled_split,
    read_names,
)

_CITYSCAPES = "https://www.cityscapes-dataset.com/downloads/"
_BDD = "https://bdd-data.berkeley.edu/portal.html"
# labels of Cityscapes from here on have objects
_FIRST_OBJECT_LABEL = 24
# classes of BDD's panoptic bitmasks from here on have objects
_FIRST_BDD_OBJECT = 31


def _read_cityscapes(request: Request) -> CocoSplit:
    entries = read_names(VOCABULARIES / "cityscapes_19.txt")
    images = sorted((request.root / "leftImg8bit" / request.split).glob("*/*_leftImg8bit.png"))
    labels = request.root / "gtFine" / request.split
    objects = frozenset(number for number, _ in entries if number >= _FIRST_OBJECT_LABEL)
    pairs = []
    for path in images:
        stem = path.stem.removesuffix("_leftImg8bit")
        pairs.append((stem, path, labels / path.parent.name / f"{stem}_gtFine_instanceIds.png"))
    return _split(request, pairs, entries, "cityscapes", objects, "cityscapes")


def _read_bdd_semantic(request: Request) -> CocoSplit:
    entries = read_names(VOCABULARIES / "cityscapes_19.txt")
    # the masks hold Cityscapes' train ids: places in the list
    names = tuple((place, name) for place, (_, name) in enumerate(entries))
    pairs = _bdd_pairs(request, request.root / "labels" / "sem_seg" / "masks")
    return _split(request, pairs, names, "index", frozenset(), "bdd")


def _read_bdd_panoptic(request: Request) -> CocoSplit:
    entries = read_names(VOCABULARIES / "bdd_40.txt")
    objects = frozenset(number for number, _ in entries if number >= _FIRST_BDD_OBJECT)
    pairs = _bdd_pairs(request, request.root / "labels" / "pan_seg" / "bitmasks")
    return _split(request, pairs, entries, "bdd_rgba", objects, "bdd")


def _bdd_pairs(request: Request, labels: Path) -> list[tuple[str, Path, Path]]:
    images = sorted((request.root / "images" / "10k" / request.split).glob("*.jpg"))
    return [(path.stem, path, labels / request.split / f"{path.stem}.png") for path in images]


def _split(
    request: Request,
    pairs: list[tuple[str, Path, Path]],
    entries: tuple[tuple[int, str], ...],
    code: LabelCode,
    objects: frozenset[int],
    space: str,
) -> CocoSplit:
    category_of = {number: number for number, _ in entries}
    return labelled_split(
        request,
        (
            (
                stem,
                image,
                LabelMap(path=label, code=code, category_of=category_of, object_classes=objects),
            )
            for stem, image, label in pairs
        ),
        [Category(id=number, name=name, is_thing=number in objects) for number, name in entries],
        space=space,
    )


SOURCES = (
    Source(
        name="cityscapes",
        description="19 classes of street scenes, fine annotations, objects apart",
        licence="non-commercial research only",
        url=_CITYSCAPES,
        files=(
            NeededFile(
                path="leftImg8bit/{split}/*/*_leftImg8bit.png",
                url=f"{_CITYSCAPES} leftImg8bit_trainvaltest.zip",
            ),
            NeededFile(
                path="gtFine/{split}/*/*_gtFine_instanceIds.png",
                url=f"{_CITYSCAPES} gtFine_trainvaltest.zip",
            ),
        ),
        read_split=_read_cityscapes,
        splits=("train", "val"),
    ),
    Source(
        name="bdd10k",
        description="19 classes of street scenes as regions",
        licence="BDD100K licence: free for research and education",
        url=_BDD,
        files=(
            NeededFile(path="images/10k/{split}/*.jpg", url=f"{_BDD} (10K Images)"),
            NeededFile(path="labels/sem_seg/masks/{split}/*.png", url=f"{_BDD} (Segmentation)"),
        ),
        read_split=_read_bdd_semantic,
        splits=("train", "val"),
    ),
    Source(
        name="bdd10k-panoptic",
        description="40 classes of street scenes, objects apart",
        licence="BDD100K licence: free for research and education",
        url=_BDD,
        files=(
            NeededFile(path="images/10k/{split}/*.jpg", url=f"{_BDD} (10K Images)"),
            NeededFile(
                path="labels/pan_seg/bitmasks/{split}/*.png", url=f"{_BDD} (Panoptic Segmentation)"
            ),
        ),
        read_split=_read_bdd_panoptic,
        splits=("train", "val"),
    ),
)
