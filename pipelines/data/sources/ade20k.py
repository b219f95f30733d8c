"""ADE20K: 150 classes as regions, things or both, and the 847 classes of the full release.

    150           ROOT = ADEChallengeData2016: images/{training,validation}, annotations/..., and
                  the list of classes objectInfo150.txt, or else our copy of it
    instance      the same, and ade20k_instance_{train,val}.json (100 classes)
    panoptic      the same, and ade20k_panoptic_{train,val}.json with its folder of PNGs
    847           ROOT = ADE20K_2021_17_01: images/ADE/{training,validation}/**/*_seg.png as it
                  comes, or {images,annotations}_detectron2/{training,validation} as MaskFormer's
                  script converts it

The two JSON files come from the preparation scripts of Mask2Former.
"""

from collections.abc import Callable
from pathlib import Path

from pipelines.data.coco import Document, load_json, parse_categories, parse_instance
from pipelines.data.records import (
    UNKNOWN_SIZE_HW,
    Category,
    CocoRecord,
    CocoSplit,
    LabelCode,
    LabelMap,
    PanopticSegment,
)
from pipelines.data.sources.base import (
    VOCABULARIES,
    NeededFile,
    Request,
    Source,
    files_by_stem,
    first_words,
    labelled_split,
    read_names,
    stuff_categories,
)
from pipelines.errors import DataError

_CHALLENGE = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
_SCRIPTS = "https://github.com/facebookresearch/Mask2Former/tree/main/datasets"
_FULL = "https://groups.csail.mit.edu/vision/datasets/ADE20K/request_data/"
_LICENCE = "annotations BSD-3-Clause; images for non-commercial research only"
_FOLDERS = {"train": "training", "val": "validation"}
_IMAGES = NeededFile(path="images/{folder}/*.jpg", url=_CHALLENGE, is_image=True)


def _names_150(root: Path) -> tuple[tuple[int, str], ...]:
    path = root / "objectInfo150.txt"
    if not path.exists():
        return read_names(VOCABULARIES / "ade20k_150.txt")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    entries = [(int(row[0]), row[-1].strip()) for row in rows if row[0].strip().isdigit()]
    return first_words(tuple(entries))


def _read_semantic(request: Request) -> CocoSplit:
    folder = _FOLDERS[request.split]
    categories = stuff_categories(_names_150(request.root))
    images = files_by_stem(request.root / "images" / folder, "*.jpg")
    labels = request.root / "annotations" / folder
    category_of = {category.id: category.id for category in categories}
    return labelled_split(
        request,
        (
            (
                stem,
                path,
                LabelMap(path=labels / f"{stem}.png", code="index", category_of=category_of),
            )
            for stem, path in images.items()
        ),
        categories,
        space="ade20k",
    )


def _read_instance(request: Request) -> CocoSplit:
    document = Document.read(request.root / f"ade20k_instance_{request.split}.json")
    folder = request.root / "images" / _FOLDERS[request.split]
    return CocoSplit(
        name=request.split,
        records=tuple(
            CocoRecord(
                image_id=number,
                image_path=folder / Path(image["file_name"]).name,
                size_hw=(int(image["height"]), int(image["width"])),
                instances=document.parsed(image_id, parse_instance),
                identities=(f"ade20k:{Path(image['file_name']).stem}",),
            )
            for number, (image_id, image) in enumerate(document.images.items())
        ),
        instance_categories=_shortened(parse_categories(document)),
        annotation_files=(document.path,),
    )


def _read_panoptic(request: Request) -> CocoSplit:
    path = request.root / f"ade20k_panoptic_{request.split}.json"
    document = load_json(path)
    folder = request.root / "images" / _FOLDERS[request.split]
    pngs = request.root / f"ade20k_panoptic_{request.split}"
    try:
        records = tuple(
            _panoptic_record(number, entry, folder, pngs)
            for number, entry in enumerate(document["annotations"])
        )
        categories = tuple(
            Category(id=int(e["id"]), name=str(e["name"]), is_thing=bool(e["isthing"]))
            for e in document["categories"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a COCO panoptic file ({error!r}). Write it again.") from error
    return CocoSplit(
        name=request.split,
        records=records,
        panoptic_categories=_shortened(categories),
        annotation_files=(path,),
    )


def _panoptic_record(number: int, entry: dict, images: Path, pngs: Path) -> CocoRecord:
    stem = Path(entry["file_name"]).stem
    return CocoRecord(
        image_id=number,
        image_path=images / f"{stem}.jpg",
        size_hw=UNKNOWN_SIZE_HW,
        panoptic_path=pngs / entry["file_name"],
        segments=tuple(
            PanopticSegment(
                id=int(segment["id"]),
                category_id=int(segment["category_id"]),
                area=int(segment["area"]),
                is_crowd=bool(segment.get("iscrowd", 0)),
                bbox_xywh_px=tuple(segment["bbox"]),
            )
            for segment in entry["segments_info"]
        ),
        identities=(f"ade20k:{stem}",),
    )


def _shortened(categories: tuple[Category, ...]) -> tuple[Category, ...]:
    names = dict(first_words(tuple((c.id, c.name) for c in categories)))
    return tuple(Category(id=c.id, name=names[c.id], is_thing=c.is_thing) for c in categories)


def _read_full(request: Request) -> CocoSplit:
    entries = read_names(VOCABULARIES / "ade20k_847.txt")
    folder = _FOLDERS[request.split]
    converted = request.root / "annotations_detectron2" / folder
    if converted.is_dir():
        images = files_by_stem(request.root / "images_detectron2" / folder, "*.jpg")
        # the converted maps count classes from 0 in the order of the list
        category_of = {place: number for place, (number, _) in enumerate(entries)}
        labels = {stem: converted / f"{stem}.tif" for stem in images}
    else:
        paths = sorted((request.root / "images" / "ADE" / folder).glob("**/*.jpg"))
        images = {path.stem: path for path in paths}
        category_of = {number: number for number, _ in entries}
        labels = {stem: path.with_name(f"{stem}_seg.png") for stem, path in images.items()}
    code: LabelCode = "index" if converted.is_dir() else "ade_rgb"
    return labelled_split(
        request,
        (
            (stem, path, LabelMap(path=labels[stem], code=code, category_of=category_of))
            for stem, path in images.items()
        ),
        stuff_categories(entries),
        space="ade20k",
    )


def _source(
    name: str,
    what: str,
    files: tuple[NeededFile, ...],
    read: Callable[[Request], CocoSplit],
) -> Source:
    return Source(
        name=name,
        description=what,
        licence=_LICENCE,
        url=files[0].url,
        files=files,
        read_split=read,
        splits=tuple(_FOLDERS),
        folders=_FOLDERS,
    )


SOURCES = (
    _source(
        "ade20k-150",
        "150 classes as regions",
        (
            NeededFile(path="images/{folder}/*.jpg", url=_CHALLENGE),
            NeededFile(path="annotations/{folder}/*.png", url=_CHALLENGE),
        ),
        _read_semantic,
    ),
    _source(
        "ade20k-150-instance",
        "100 classes of things",
        (_IMAGES, NeededFile(path="ade20k_instance_{split}.json", url=_SCRIPTS)),
        _read_instance,
    ),
    _source(
        "ade20k-150-panoptic",
        "100 classes of things and 50 of stuff",
        (
            _IMAGES,
            NeededFile(path="ade20k_panoptic_{split}.json", url=_SCRIPTS),
            NeededFile(path="ade20k_panoptic_{split}/*.png", url=_SCRIPTS),
        ),
        _read_panoptic,
    ),
    _source(
        "ade20k-847",
        "847 classes as regions, of the full release",
        (
            NeededFile(
                path="images/ADE/{folder}/**/*_seg.png|annotations_detectron2/{folder}/*.tif",
                url=_FULL,
            ),
        ),
        _read_full,
    ),
)
