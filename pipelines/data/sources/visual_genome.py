"""Visual Genome: every phrase about a region of an image as a caption of that image.

ROOT/{image_data.json, region_descriptions.json}
ROOT/{VG_100K, VG_100K_2}/<image id>.jpg
"""

from pathlib import Path
from typing import Any

from pipelines.data.coco import load_json
from pipelines.data.records import CocoRecord, CocoSplit
from pipelines.data.sources.base import NeededFile, Request, Source
from pipelines.errors import DataError

_SITE = "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html"
_FOLDERS = ("VG_100K", "VG_100K_2")


def _read(request: Request) -> CocoSplit:
    images_path = request.root / "image_data.json"
    phrases_path = request.root / "region_descriptions.json"
    try:
        phrases = {int(e["id"]): _phrases(e["regions"]) for e in load_json(phrases_path)}
        records = [
            _record(request.root, entry, phrases.get(int(entry["image_id"]), ()))
            for entry in load_json(images_path)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{request.root}: image_data.json must list image_id, width and height, "
            f"region_descriptions.json id and regions with a phrase each; got {error!r}."
        ) from error
    return CocoSplit(
        name=request.split,
        records=tuple(record for record in records if record.captions),
        annotation_files=(images_path, phrases_path),
    )


def _phrases(regions: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(region["phrase"]).strip() for region in regions))


def _record(root: Path, entry: dict[str, Any], captions: tuple[str, ...]) -> CocoRecord:
    image_id = int(entry["image_id"])
    paths = [root / folder / f"{image_id}.jpg" for folder in _FOLDERS]
    identities = [f"vg:{image_id}"]
    for field, space in (("coco_id", "coco"), ("flickr_id", "flickr")):
        if entry.get(field) is not None:
            identities.append(f"{space}:{int(entry[field])}")
    return CocoRecord(
        image_id=image_id,
        image_path=next((path for path in paths if path.exists()), paths[0]),
        size_hw=(int(entry["height"]), int(entry["width"])),
        captions=captions,
        identities=tuple(identities),
    )


SOURCES = (
    Source(
        name="vg",
        description="5.4 million phrases about regions of 108,000 images, as captions",
        licence="CC BY 4.0",
        url=_SITE,
        files=(
            NeededFile(path="image_data.json", url=_SITE),
            NeededFile(path="region_descriptions.json", url=_SITE),
            NeededFile(path="VG_100K/*.jpg|VG_100K_2/*.jpg", url=_SITE, is_image=True),
        ),
        read_split=_read,
        splits=("train",),
    ),
)
