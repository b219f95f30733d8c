"""What is known about one image, in COCO's terms, whichever data set it comes from.

    a data set's own files  --adapter-->  CocoSplit of CocoRecord  --packing-->  shards

An adapter (`pipelines/data/sources`) only says where things are; images, label maps and PNGs are
opened when a record is packed. Splits of millions of pairs give their records lazily.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.data.refer import Sentence

Segmentation = dict[str, Any] | list[list[float]]
# how the pixels of a label map are to be read, see `label_maps.py`
LabelCode = Literal["index", "mat", "ade_rgb", "cityscapes", "bdd_rgba", "class_and_object"]
# the size of an image that only the image itself knows
UNKNOWN_SIZE_HW = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Category:
    """A class; `name` is the file's, `prompt` is what a text encoder should read."""

    id: int
    name: str
    is_thing: bool
    supercategory: str = ""

    @property
    def prompt(self) -> str:
        """The name without COCO's bookkeeping: `floor-other-merged` becomes `floor`.

        Source: microsoft/X-Decoder utils/prompt_engineering.py
        """
        name = self.name
        for suffix in ("-other", "-merged", "-stuff"):
            name = name.replace(suffix, "")
        return name


@dataclass(frozen=True, kw_only=True)
class PanopticSegment:
    """One entry of `segments_info`; `id` is its value in the panoptic PNG."""

    id: int
    category_id: int
    area: int
    is_crowd: bool
    bbox_xywh_px: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One annotation of an instances file; `segmentation` is polygons or RLE, as in the file.

    Empty polygons mark an annotation that is only a box.
    """

    id: int
    category_id: int
    segmentation: Segmentation
    area: float
    is_crowd: bool
    bbox_xywh_px: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ReferredRegion:
    """A region with the sentences that refer to it."""

    ref_id: int
    instance: Instance
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """A picture of labels that stands in for a panoptic PNG.

    category_of: from a class in the file to a category id; other classes are unlabelled.
    object_classes: classes in the file that are counted, so that a region of them is one object.
    object_path: for `class_and_object`, the picture that separates objects of one class.
    """

    path: Path
    code: LabelCode
    category_of: Mapping[int, int]
    object_classes: frozenset[int] = frozenset()
    object_path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class CocoRecord:
    """All that is known about one image; `None` marks a kind of annotation that is absent.

    image_range: offset and number of bytes, where the image lies inside a tar.
    label_map: instead of segments. key: the sample's name, empty = the stem of the file name.
    identities: names under which evaluation sets may know this image, as `coco:139`.
    """

    image_id: int
    image_path: Path
    size_hw: tuple[int, int]
    panoptic_path: Path | None = None
    segments: tuple[PanopticSegment, ...] | None = None
    instances: tuple[Instance, ...] | None = None
    captions: tuple[str, ...] | None = None
    refs: tuple[ReferredRegion, ...] = ()
    image_range: tuple[int, int] | None = None
    label_map: LabelMap | None = None
    key: str = ""
    identities: tuple[str, ...] = ()

    @property
    def sample_key(self) -> str:
        """The name of the sample in its shard."""
        return self.key or self.image_path.stem


@dataclass(frozen=True, kw_only=True)
class CocoSplit:
    """The records of one split, in a fixed order, with the classes that they use.

    is_complete: a record without its image is an error; a list from the web has holes, and its
    order is kept. stamp: what tells this input from another, beside the annotation files.
    """

    name: str
    records: Sequence[CocoRecord]
    panoptic_categories: tuple[Category, ...] = ()
    instance_categories: tuple[Category, ...] = ()
    annotation_files: tuple[Path, ...] = ()
    is_complete: bool = True
    stamp: str = ""

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes of segments, or of instances where there are no segments."""
        return self.panoptic_categories or self.instance_categories

    def __iter__(self) -> Iterator[CocoRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)
