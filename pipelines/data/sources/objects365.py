"""Objects365: boxes of 365 classes on 1.7 million images, no masks.

ROOT/zhiyuan_objv2_{train,val}.json
ROOT/{train,val}/patchN/*.jpg         the last two parts of `file_name`, as released
"""

from pathlib import Path
from typing import Any

from pipelines.data.coco import Document, parse_categories
from pipelines.data.records import CocoRecord, CocoSplit, Instance
from pipelines.data.sources.base import NeededFile, Request, Source

_SITE = "https://www.objects365.org/download.html"


def _read(request: Request) -> CocoSplit:
    document = Document.read(request.root / f"zhiyuan_objv2_{request.split}.json")
    records = []
    for image_id, image in document.images.items():
        patch, name = Path(image["file_name"]).parts[-2:]
        records.append(
            CocoRecord(
                image_id=image_id,
                image_path=request.root / request.split / patch / name,
                size_hw=(int(image["height"]), int(image["width"])),
                instances=document.parsed(image_id, _box),
                identities=(f"objects365:{image_id}",),
            )
        )
    return CocoSplit(
        name=request.split,
        records=tuple(records),
        instance_categories=parse_categories(document),
        annotation_files=(document.path,),
    )


def _box(entry: dict[str, Any]) -> Instance:
    return Instance(
        id=int(entry["id"]),
        category_id=int(entry["category_id"]),
        segmentation=[],
        area=float(entry["area"]),
        is_crowd=bool(entry.get("iscrowd", 0)),
        bbox_xywh_px=tuple(float(value) for value in entry["bbox"]),
    )


SOURCES = (
    Source(
        name="objects365",
        description="boxes of 365 classes, no masks",
        licence="annotations CC BY 4.0; images under Flickr's terms",
        url=_SITE,
        files=(
            NeededFile(path="zhiyuan_objv2_{split}.json", url=_SITE),
            NeededFile(path="{split}/patch*/*.jpg", url=_SITE, is_image=True),
        ),
        read_split=_read,
        splits=("train", "val"),
    ),
)
