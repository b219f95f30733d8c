"""Indoor scenes: ScanNet's 25,000 frames and SUN RGB-D.

scannet25k-*  ROOT/scannet_frames_25k/sceneXXXX_XX/{color/*.jpg, label/*.png}, and the lists of
              scenes ROOT/scannetv2_{train,val}.txt; labels are NYU's 40 classes
sunrgbd-37    ROOT/SUNRGBD-{train,test}_images/img-*.jpg, and
              ROOT/sunrgbd_train_test_labels/img-*.png: the first 5,050 of them belong to test,
              the following to train
"""

from functools import partial
from pathlib import Path

from pipelines.data.records import CocoSplit, LabelMap
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

_SCANNET = "http://www.scan-net.org/ (after its terms of use are signed)"
_SPLITS_URL = "https://github.com/ScanNet/ScanNet/tree/master/Tasks/Benchmark"
_SUN_IMAGES = "https://rgbd.cs.princeton.edu/"
_SUN_LABELS = "https://github.com/ankurhanda/sunrgbd-meta-data"
_NUM_SUN_TEST = 5050


def _read_scannet(vocabulary: str, request: Request) -> CocoSplit:
    entries = read_names(VOCABULARIES / vocabulary)
    frames = request.root / "scannet_frames_25k"
    list_path = request.root / f"scannetv2_{request.split}.txt"
    pairs = [
        (f"{scene}_{image.stem}", image, frames / scene / "label" / f"{image.stem}.png")
        for scene in listed_stems(list_path)
        for image in sorted((frames / scene / "color").glob("*.jpg"))
    ]
    return _split(request, pairs, entries, "scannet", (list_path,))


def _read_sun(request: Request) -> CocoSplit:
    entries = read_names(VOCABULARIES / "sunrgbd_37.txt")
    images = sorted((request.root / f"SUNRGBD-{request.split}_images").glob("img-*.jpg"))
    labels = request.root / "sunrgbd_train_test_labels"
    first = 0 if request.split == "test" else _NUM_SUN_TEST
    pairs = []
    for image in images:
        number = int(image.stem.removeprefix("img-")) + first
        pairs.append((f"{request.split}-{image.stem}", image, labels / f"img-{number:06d}.png"))
    return _split(request, pairs, entries, "sunrgbd", ())


def _split(
    request: Request,
    pairs: list[tuple[str, Path, Path]],
    entries: tuple[tuple[int, str], ...],
    space: str,
    files: tuple[Path, ...],
) -> CocoSplit:
    category_of = {number: number for number, _ in entries}
    return labelled_split(
        request,
        (
            (key, image, LabelMap(path=label, code="index", category_of=category_of))
            for key, image, label in pairs
        ),
        stuff_categories(entries),
        space=space,
        annotation_files=files,
    )


def _scannet(name: str, vocabulary: str, what: str) -> Source:
    return Source(
        name=name,
        description=what,
        licence="ScanNet terms of use: non-commercial research",
        url=_SCANNET,
        files=(
            NeededFile(path="scannet_frames_25k/*/color/*.jpg", url=_SCANNET),
            NeededFile(path="scannet_frames_25k/*/label/*.png", url=_SCANNET),
            NeededFile(path="scannetv2_{split}.txt", url=_SPLITS_URL),
        ),
        read_split=partial(_read_scannet, vocabulary),
        splits=("train", "val"),
    )


SOURCES = (
    _scannet("scannet25k-20", "scannet_20.txt", "the 20 classes of the ScanNet benchmark"),
    _scannet("scannet25k-40", "nyu_40.txt", "the 40 classes of NYU"),
    Source(
        name="sunrgbd-37",
        description="37 classes of indoor scenes as regions",
        licence="research; see its site",
        url=_SUN_IMAGES,
        files=(
            NeededFile(path="SUNRGBD-{split}_images/img-*.jpg", url=_SUN_LABELS),
            NeededFile(path="sunrgbd_train_test_labels/img-*.png", url=_SUN_LABELS),
        ),
        read_split=_read_sun,
        splits=("train", "test"),
    ),
)
