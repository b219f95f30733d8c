"""The data sets of an evaluation as data: where they lie, how they are asked, what is counted.

--data-root/coco        COCO's archives: val2017/, val2014/, annotations/
--data-root/refcoco     REFER's folders refcoco/, refcoco+/, refcocog/
--data-root/<folder>    the others, laid out as `python -m pipelines.prepare <source>` expects
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.data.coco import CocoFolder, CocoSplit
from pipelines.data.sources import Request, source_named
from pipelines.errors import ConfigError, DataError
from pipelines.evaluation.naming_stage import META_FILE


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """A split that is read, and what its truth can be used for.

    has_objects: whether objects of a class are told apart, as panoptic quality needs.
    """

    name: str
    root: Path
    split: CocoSplit
    has_objects: bool = True

    def truth_files(self) -> list[Path]:
        """Every annotation file that decides the numbers."""
        others = (self.root / META_FILE, self.root / "refs" / "instances.json")
        files = [*self.split.annotation_files, *others]
        return [path for path in dict.fromkeys(files) if path.is_file()]

    def truth_pictures(self) -> list[Path]:
        """Every picture of segments or labels, in the order of the split."""
        maps = [r.label_map.path if r.label_map else r.panoptic_path for r in self.split]
        return [path for path in maps if path is not None]


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A named part of a data set, and the settings of its published protocol.

    folder: below the data root. images: where images are, for lists whose images belong to another
    data set. settings: fields of `EvaluationOptions` that the protocol fixes.
    """

    source: str
    split: str
    folder: str
    stages: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    split_by: str = ""
    images: str = ""
    has_objects: bool = True

    def load(self, name: str, data_root: Path) -> EvaluationData:
        """The records of the set.

        Raises:
            DataError: the folder or a file of it is missing; the message says where to get it.
        """
        root = data_root / self.folder
        source = source_named(self.source)
        if not root.is_dir():
            raise DataError(
                f"evaluate {name}: {self.source} must lie in {root}; there is no such folder. It "
                f"is given out at {source.url}."
            )
        request = Request(
            root=root,
            split=self.split,
            split_by=self.split_by,
            images=data_root / self.images if self.images else None,
        )
        found = source.read(request)
        return EvaluationData(name=name, root=root, split=found, has_objects=self.has_objects)


def coco_data(root: Path, split: str) -> EvaluationData:
    """A split of one's own COCO-format folder.

    Raises:
        DataError: there is no such folder or split.
    """
    found = CocoFolder(root).split(split)
    return EvaluationData(name=f"{root.resolve().name}-{found.name}", root=root, split=found)


def data_of_report(report: Mapping[str, Any]) -> EvaluationData:
    """The data that a report is about, read again.

    Raises:
        DataError: they are not where they were.
    """
    root, name = Path(report["root"]), report.get("data_set", "")
    if name not in SETS:
        return coco_data(root, report["split"])
    depth = len(Path(SETS[name].folder).parts)
    return SETS[name].load(name, root.parents[depth - 1])


_SEGMENTATION = ("segmentation",)
# shorter and longest side that X-Decoder tests with; 0: no limit
_COCO_SIZE = {"shorter_px": 800, "longest_px": 1333}
_ADE_SIZE = {"shorter_px": 640, "longest_px": 2560}
_CITY_SIZE = {"shorter_px": 1024, "longest_px": 2048}
_BDD_SIZE = {"shorter_px": 800}
_INDOOR_SIZE = {"shorter_px": 512}
_REFER_SIZE = {"shorter_px": 512, "longest_px": 1024}
_PAIR_SIZE = {"text_size_hw": (224, 224), "is_squashed": True}
_OPEN = {"object_threshold": 0.4}


def _refer(source: str, split: str, split_by: str) -> EvaluationSet:
    return EvaluationSet(
        source=source,
        split=split,
        split_by=split_by,
        folder=f"refcoco/{source}",
        images="coco/train2014",
        stages=("referring",),
        settings=_REFER_SIZE,
    )


def _labelled(source: str, split: str, folder: str, size: Mapping[str, Any]) -> EvaluationSet:
    return EvaluationSet(
        source=source,
        split=split,
        folder=folder,
        stages=_SEGMENTATION,
        settings=size,
        has_objects=False,
    )


SETS: Mapping[str, EvaluationSet] = {
    "coco-panoptic": EvaluationSet(
        source="coco",
        split="val2017",
        folder="coco",
        stages=_SEGMENTATION,
        settings={**_COCO_SIZE, "object_threshold": 0.8},
    ),
    "coco-karpathy": EvaluationSet(
        source="coco-karpathy",
        split="test",
        folder="coco",
        stages=("captioning", "retrieval"),
        settings={**_PAIR_SIZE, "retrieval_pool": 0, "texts_per_image": 0},
    ),
    "flickr30k": EvaluationSet(
        source="flickr30k",
        split="test",
        folder="flickr30k",
        stages=("retrieval",),
        settings={**_PAIR_SIZE, "retrieval_pool": 0, "texts_per_image": 5},
    ),
    "ade20k-panoptic": EvaluationSet(
        source="ade20k-150-panoptic",
        split="val",
        folder="ADEChallengeData2016",
        stages=_SEGMENTATION,
        settings={**_ADE_SIZE, **_OPEN},
    ),
    "ade20k-instance": EvaluationSet(
        source="ade20k-150-instance",
        split="val",
        folder="ADEChallengeData2016",
        stages=_SEGMENTATION,
        settings=_ADE_SIZE,
    ),
    "ade20k-semantic": _labelled("ade20k-150", "val", "ADEChallengeData2016", _ADE_SIZE),
    "ade20k-847": _labelled("ade20k-847", "val", "ADE20K_2021_17_01", _ADE_SIZE),
    "voc2012": _labelled("voc2012", "val", "VOCdevkit/VOC2012", _INDOOR_SIZE),
    "pascal-context-59": _labelled("pascal-context-59", "val", "VOCdevkit/VOC2010", _INDOOR_SIZE),
    "pascal-context-459": _labelled("pascal-context-459", "val", "VOCdevkit/VOC2010", _INDOOR_SIZE),
    "sunrgbd-37": _labelled("sunrgbd-37", "test", "sun_rgbd", _INDOOR_SIZE),
    "scannet-20": _labelled("scannet25k-20", "val", "scannet_frames_25k", _INDOOR_SIZE),
    "scannet-40": _labelled("scannet25k-40", "val", "scannet_frames_25k", _INDOOR_SIZE),
    "cityscapes": EvaluationSet(
        source="cityscapes",
        split="val",
        folder="cityscapes",
        stages=_SEGMENTATION,
        settings={**_CITY_SIZE, **_OPEN},
    ),
    "bdd10k-panoptic": EvaluationSet(
        source="bdd10k-panoptic",
        split="val",
        folder="bdd100k",
        stages=_SEGMENTATION,
        settings={**_BDD_SIZE, **_OPEN},
    ),
    "bdd10k-semantic": _labelled("bdd10k", "val", "bdd100k", _BDD_SIZE),
    "objects365": EvaluationSet(
        source="objects365",
        split="val",
        folder="objects365",
        stages=_SEGMENTATION,
        settings=_COCO_SIZE,
    ),
    "refcocog-umd-val": _refer("refcocog", "val", "umd"),
    "refcocog-umd-test": _refer("refcocog", "test", "umd"),
    "refcocog-google-val": _refer("refcocog", "val", "google"),
    **{
        f"{source}-{split}": _refer(source, split, "unc")
        for source in ("refcoco", "refcoco+")
        for split in ("val", "testA", "testB")
    },
    "coco_mini": EvaluationSet(
        source="coco",
        split="val",
        folder="coco_mini",
        stages=("segmentation", "referring", "captioning", "retrieval"),
    ),
    "scenes": EvaluationSet(
        source="coco",
        split="val",
        folder="scenes",
        stages=("segmentation", "referring", "captioning", "retrieval"),
    ),
    "scenes-zeroshot": EvaluationSet(
        source="coco",
        split="zeroshot",
        folder="scenes",
        stages=("segmentation", "referring", "retrieval", "naming"),
    ),
}

_REFERRING = tuple(name for name in SETS if name.startswith("refcoco"))
SUITES: Mapping[str, tuple[str, ...]] = {
    "zeroshot": (
        "ade20k-panoptic",
        "ade20k-instance",
        "ade20k-847",
        "voc2012",
        "pascal-context-59",
        "pascal-context-459",
        "sunrgbd-37",
        "scannet-20",
        "scannet-40",
        "cityscapes",
        "bdd10k-panoptic",
        "bdd10k-semantic",
    ),
    "coco": ("coco-panoptic", "coco-karpathy"),
    "refcoco": _REFERRING,
    "text": ("coco-karpathy", "flickr30k"),
    "paper": ("ade20k-panoptic", "coco-panoptic", "refcocog-umd-val", "coco-karpathy", "flickr30k"),
    "openseed": (
        "coco-panoptic",
        "ade20k-panoptic",
        "ade20k-instance",
        "cityscapes",
        "bdd10k-panoptic",
        "bdd10k-semantic",
        "scannet-20",
        "objects365",
    ),
    "scenes": ("scenes", "scenes-zeroshot"),
}


def chosen_sets(suite: str | None, names: Sequence[str]) -> list[str]:
    """The names of a suite, or those asked for: by name, or by place in the suite (of all sets).

    Raises:
        ConfigError: there is no such suite, set or place.
    """
    if suite is not None and suite not in SUITES:
        raise ConfigError(f"evaluate: --suite must be one of {list(SUITES)}; got {suite!r}.")
    listed = list(SUITES[suite]) if suite else list(SETS)
    if not names:
        return listed
    chosen = []
    for name in names:
        place = int(name) if name.isdigit() else -1
        found = listed[place] if 0 <= place < len(listed) else name
        if found not in SETS:
            raise ConfigError(
                f"evaluate: --dataset must be one of {listed}, or a place in 0..{len(listed) - 1}; "
                f"got {name!r}."
            )
        chosen.append(found)
    return list(dict.fromkeys(chosen))
