"""Captions with Karpathy's splits: COCO of 2014, and Flickr30k.

ROOT of COCO holds `dataset_coco.json`, `train2014/` and `val2014/`, or `--images` names a folder
of 2014 or 2017. ROOT of Flickr30k holds `flickr30k-images/` and `dataset_flickr30k.json` or
`results_20130124.token`, which knows one split only, `all`.
"""

from pathlib import Path
from typing import Any

from pipelines.data.coco import load_json
from pipelines.data.records import UNKNOWN_SIZE_HW, CocoRecord, CocoSplit
from pipelines.data.sources.base import NeededFile, Request, Source
from pipelines.errors import DataError

_LISTS = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
_COCO = "http://images.cocodataset.org/zips/train2014.zip, val2014.zip"
_FLICKR = "https://shannon.cs.illinois.edu/DenotationGraph/"


def _read_coco(request: Request) -> CocoSplit:
    path = request.root / "dataset_coco.json"
    records = [
        CocoRecord(
            image_id=int(entry["cocoid"]),
            image_path=_coco_image(request, entry),
            size_hw=UNKNOWN_SIZE_HW,
            captions=_sentences(entry),
            identities=(f"coco:{int(entry['cocoid'])}",),
        )
        for entry in _entries(path, request.split)
    ]
    return _split(request, path, records)


def _coco_image(request: Request, entry: dict[str, Any]) -> Path:
    if request.images is not None:
        for name in (entry["filename"], f"{int(entry['cocoid']):012d}.jpg"):
            if (request.images / name).exists():
                return request.images / name
        return request.images / entry["filename"]
    return request.root / entry["filepath"] / entry["filename"]


def _read_flickr(request: Request) -> CocoSplit:
    images = request.images or request.root / "flickr30k-images"
    path = request.root / "dataset_flickr30k.json"
    if path.exists():
        entries = _entries(path, request.split)
        captions = {str(entry["filename"]): _sentences(entry) for entry in entries}
    else:
        path = request.root / "results_20130124.token"
        if request.split != "all":
            raise DataError(
                f"{request.root}: split {request.split!r} needs dataset_flickr30k.json from "
                f"{_LISTS}; {path.name} has no splits. Take that file, or --split all."
            )
        captions = _token_captions(path)
    records = [
        CocoRecord(
            image_id=int(Path(name).stem),
            image_path=images / name,
            size_hw=UNKNOWN_SIZE_HW,
            captions=sentences,
            identities=(f"flickr:{int(Path(name).stem)}",),
        )
        for name, sentences in captions.items()
    ]
    return _split(request, path, records)


def _token_captions(path: Path) -> dict[str, tuple[str, ...]]:
    captions: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, separator, caption = line.partition("\t")
        if not separator or "#" not in name:
            raise DataError(
                f"{path}: line {number} must be `image.jpg#0<TAB>caption`; got {line!r}."
            )
        image = name.partition("#")[0]
        captions[image] = (*captions.get(image, ()), caption.strip())
    return captions


def _entries(path: Path, split: str) -> list[dict[str, Any]]:
    try:
        return [entry for entry in load_json(path)["images"] if entry["split"] == split]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: must hold `images`, each with split, filename and sentences; got {error!r}."
        ) from error


def _sentences(entry: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(sentence["raw"]).strip() for sentence in entry["sentences"])


def _split(request: Request, path: Path, records: list[CocoRecord]) -> CocoSplit:
    return CocoSplit(name=request.split, records=tuple(records), annotation_files=(path,))


SOURCES = (
    Source(
        name="coco-karpathy",
        description="COCO captions of 2014 in Karpathy's split; --split train+restval is usual",
        licence="annotations CC BY 4.0; each image under its own Flickr licence",
        url=_LISTS,
        files=(
            NeededFile(path="dataset_coco.json", url=_LISTS),
            NeededFile(path="{folder}/*.jpg", url=_COCO, is_image=True),
        ),
        folders={"train": "train2014", **dict.fromkeys(("restval", "val", "test"), "val2014")},
        read_split=_read_coco,
        splits=("train", "restval", "val", "test"),
        takes=("images",),
    ),
    Source(
        name="flickr30k",
        description="31,783 photographs with five captions each",
        licence="non-commercial research; images under Flickr's terms",
        url=_FLICKR,
        files=(
            NeededFile(path="dataset_flickr30k.json|results_20130124.token", url=_LISTS),
            NeededFile(path="flickr30k-images/*.jpg", url=_FLICKR, is_image=True),
        ),
        read_split=_read_flickr,
        splits=("train", "val", "test", "all"),
        takes=("images",),
    ),
)
