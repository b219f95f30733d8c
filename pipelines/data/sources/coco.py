"""COCO, of 2014 or 2017, and any other folder in its format.

Images are looked for in `ROOT/images/SPLIT` and in `ROOT/SPLIT`, annotations in `ROOT/annotations`.
"""

from dataclasses import replace
from functools import partial

from pipelines.data.coco import KINDS, CocoFolder
from pipelines.data.records import Category, CocoRecord, CocoSplit
from pipelines.data.sources.base import NeededFile, Request, Source, read_names
from pipelines.errors import ConfigError, DataError

_SITE = "https://cocodataset.org/#download"
_LICENCE = (
    "of COCO itself: annotations CC BY 4.0; each image under its own Flickr licence, see "
    "`license` in the JSON. Of another folder in its format: as its owner says"
)
_IMAGES = NeededFile(
    path="{split}*/*|images/{split}*/*",
    url="http://images.cocodataset.org/zips/train2017.zip, val2017.zip, train2014.zip, val2014.zip",
    is_image=True,
)
_ARCHIVES = {
    "panoptic": "http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip "
    "(and the archives of PNGs inside it)",
    "instances": "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    "captions": "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
}


def _read(kinds: tuple[str, ...], request: Request) -> CocoSplit:
    folder = CocoFolder(
        request.root,
        kinds=kinds,
        refs_name=request.split_by or None,
        refs_folder=request.refer,
    )
    return folder.split(request.split)


def _read_boxes(request: Request) -> CocoSplit:
    split = CocoFolder(request.root, kinds=("instances",), with_refs=False).split(request.split)
    return replace(split, records=tuple(_without_masks(record) for record in split.records))


def _without_masks(record: CocoRecord) -> CocoRecord:
    instances = record.instances
    if instances is None:
        return record
    return replace(record, instances=tuple(replace(i, segmentation=[]) for i in instances))


def _read_custom(request: Request) -> CocoSplit:
    split = _read(KINDS, request)
    if request.class_list is None:
        raise ConfigError("prepare custom: --classes must name a file with one class on each line.")
    listed = read_names(request.class_list)
    known = {category.name: category for category in split.categories}
    unknown = [name for _, name in listed if known and name not in known]
    if unknown:
        raise DataError(
            f"{request.class_list}: classes must be among the {len(known)} categories of "
            f"{request.root}; not there: {unknown[:8]}."
        )
    categories = tuple(
        known.get(name) or Category(id=number, name=name, is_thing=True) for number, name in listed
    )
    kept = {category.id for category in categories}
    is_panoptic = split.panoptic_categories or (not known and _has_segments(split))
    return replace(
        split,
        records=tuple(_only(record, kept) for record in split.records),
        panoptic_categories=categories if is_panoptic else (),
        instance_categories=categories,
    )


def _has_segments(split: CocoSplit) -> bool:
    return any(record.segments is not None for record in split)


def _only(record: CocoRecord, kept: set[int]) -> CocoRecord:
    segments, instances = record.segments, record.instances
    return replace(
        record,
        segments=None if segments is None else tuple(s for s in segments if s.category_id in kept),
        instances=None
        if instances is None
        else tuple(i for i in instances if i.category_id in kept),
        refs=tuple(region for region in record.refs if region.instance.category_id in kept),
        # the ids of one's own files are nobody else's, unless they are named as COCO names its own
        identities=record.identities if record.image_path.stem.startswith("COCO_") else (),
    )


def _files(*kinds: str) -> tuple[NeededFile, ...]:
    lists = (
        NeededFile(path=f"annotations/{kind}_{{split}}*.json", url=_ARCHIVES[kind])
        for kind in kinds
    )
    return (*lists, _IMAGES)


def _source(name: str, kind: str, description: str) -> Source:
    return Source(
        name=name,
        description=description,
        licence=_LICENCE,
        url=_SITE,
        files=_files(kind),
        read_split=partial(_read, (kind,)),
        takes=("split_by", "refer"),
    )


SOURCES = (
    Source(
        name="coco",
        description="everything that a COCO-format folder has, in one sample per image",
        licence=_LICENCE,
        url=_SITE,
        files=(NeededFile(path="annotations/*_{split}*.json", url=_SITE), _IMAGES),
        read_split=partial(_read, KINDS),
        takes=("split_by", "refer"),
    ),
    _source("coco-panoptic", "panoptic", "panoptic segments, with phrases if --refer is given"),
    _source("coco-instances", "instances", "80 classes of things, as segments without stuff"),
    Source(
        name="coco-boxes",
        description="80 classes of things, as boxes without masks",
        licence=_LICENCE,
        url=_SITE,
        files=_files("instances"),
        read_split=_read_boxes,
    ),
    _source("coco-captions", "captions", "five captions for each image"),
    Source(
        name="custom",
        description="one's own COCO-format folder, cut to the classes of a list",
        licence="as its owner says",
        url="one's own",
        files=(
            NeededFile(path="annotations/*_{split}*.json", url="one's own"),
            NeededFile(path="{split}*/*|images/{split}*/*", url="one's own", is_image=True),
        ),
        read_split=_read_custom,
        takes=("split_by", "refer", "class_list"),
    ),
)
