"""RefCOCO, RefCOCO+ and RefCOCOg in REFER's layout.

    ROOT/refcoco/{refs(unc).p, refs(google).p, instances.json}    likewise refcoco+ and refcocog
    ROOT/images/mscoco/images/train2014/COCO_train2014_*.jpg      or --images FOLDER

The images are COCO's of 2014; those of 2017 are the same under the same ids and
serve as well. Every annotated
instance of an image becomes a segment, the referred ones carry the sentences.
"""

from functools import partial
from pathlib import Path
from typing import Any

from pipelines.data.coco import (
    Document,
    coco_identities,
    parse_categories,
    parse_instance,
    read_regions,
)
from pipelines.data.records import CocoRecord, CocoSplit
from pipelines.data.sources.base import NeededFile, Request, Source
from pipelines.errors import DataError

_URL = "https://github.com/lichengunc/refer"
_COCO = "http://images.cocodataset.org/zips/train2014.zip"
_IMAGES = Path("images/mscoco/images/train2014")


def _read(name: str, request: Request) -> CocoSplit:
    folder = request.root / name
    refs_path = folder / f"refs({request.split_by}).p"
    regions = read_regions(refs_path, {request.split})
    if not regions:
        raise DataError(f"{refs_path}: has no reference of split {request.split!r}.")
    document = Document.read(folder / "instances.json")
    images = request.images or request.root / _IMAGES
    unlisted = [image_id for image_id in regions if image_id not in document.images]
    if unlisted:
        raise DataError(f"{document.path}: must list image {unlisted[0]} of {refs_path.name}.")
    records = []
    for image_id in sorted(regions):
        image = document.images[image_id]
        path = _image_path(images, image)
        records.append(
            CocoRecord(
                image_id=image_id,
                image_path=path,
                size_hw=(int(image["height"]), int(image["width"])),
                instances=document.parsed(image_id, parse_instance),
                refs=tuple(regions[image_id]),
                identities=coco_identities(image["file_name"]) or (f"coco:{image_id}",),
            )
        )
    return CocoSplit(
        name=request.split,
        records=tuple(records),
        instance_categories=parse_categories(document),
        annotation_files=(refs_path, document.path),
    )


def _image_path(folder: Path, image: dict[str, Any]) -> Path:
    name = str(image["file_name"])
    of_2017 = folder / f"{int(image['id']):012d}.jpg"
    return of_2017 if of_2017.exists() else folder / name


def _source(name: str, split_bys: tuple[str, ...], splits: tuple[str, ...], what: str) -> Source:
    return Source(
        name=name,
        description=what,
        licence="REFER Apache-2.0; images and instances as COCO's",
        url=_URL,
        files=(
            NeededFile(path=f"{name}/refs({{split_by}}).p", url=_URL),
            NeededFile(path=f"{name}/instances.json", url=_URL),
            NeededFile(path=f"{_IMAGES}/*.jpg", url=_COCO, is_image=True),
        ),
        read_split=partial(_read, name),
        splits=splits,
        split_bys=split_bys,
        takes=("split_by", "images"),
    )


SOURCES = (
    _source(
        "refcoco",
        ("unc", "google"),
        ("train", "val", "testA", "testB", "test"),
        "phrases for 50,000 objects; --split-by unc is usual",
    ),
    _source(
        "refcoco+",
        ("unc",),
        ("train", "val", "testA", "testB"),
        "phrases without words of place",
    ),
    _source(
        "refcocog",
        ("umd", "google"),
        ("train", "val", "test"),
        "whole sentences for objects; umd keeps the images of its splits apart, google does not",
    ),
)
