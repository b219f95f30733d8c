"""Label maps of many data sets as COCO's panoptic pictures: segment ids, and what each id is.

    code              pixels of the file                          becomes
    index             class                                       one segment per class
    mat               class, in `LabelMap` of a MATLAB file       one segment per class
    ade_rgb           class = R // 10 * 256 + G                   one segment per class
    cityscapes        class, or class * 1000 + object             objects; a bare thing is a crowd
    bdd_rgba          R class, G flags, B * 256 + A object        objects; stuff joined by class
    class_and_object  class, and a second picture with objects    one segment per object

Source: cityscapesScripts helpers/labels.py and preparation/json2instanceImg.py; bdd100k
label/to_mask.py; ADE20K utils/utils_ade20k.py; Pascal VOC devkit.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from numpy import ndarray
from PIL import Image
from scipy.io import loadmat

from pipelines.data.coco import decode_mask
from pipelines.data.records import Instance, LabelCode, LabelMap
from pipelines.errors import DataError

# of a class that has objects, in files that write objects as class * 1000 + number
_OBJECTS_PER_CLASS = 1000
# bdd100k's flags: truncated 8, occluded 4, crowd 2, ignore 1
_BDD_CROWD_FLAGS = 3


@dataclass(frozen=True, kw_only=True)
class LabelledSegment:
    """A segment of a label map: its id in the picture, and what it is."""

    id: int
    category_id: int
    is_crowd: bool = False


@dataclass(frozen=True, kw_only=True)
class SegmentMap:
    """Segment ids by pixel, 0 where unlabelled, and the segments in the order of their ids."""

    ids: Int[ndarray, "h w"]
    segments: tuple[LabelledSegment, ...]

    def png(self) -> bytes:
        """The ids as COCO's panoptic PNG: id = R + 256 G + 65536 B."""
        planes = [(self.ids >> shift) & 255 for shift in (0, 8, 16)]
        buffer = io.BytesIO()
        Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8)).save(buffer, format="PNG")
        return buffer.getvalue()


def read_label_map(label_map: LabelMap) -> SegmentMap:
    """The segments of a label map.

    Raises:
        DataError: the file is missing, unreadable, or not of the kind that its code needs.
    """
    return _READERS[label_map.code](label_map)


def paint_instances(instances: tuple[Instance, ...], size_hw: tuple[int, int]) -> SegmentMap:
    """Instances as segments, small ones in front of large ones, crowds behind all.

    Pixels that two instances share go to the one in front; boxes without a mask are left out.
    """
    masked = [instance for instance in instances if instance.segmentation]
    masked.sort(key=lambda instance: (not instance.is_crowd, -instance.area))
    ids = np.zeros(size_hw, np.int32)
    for number, instance in enumerate(masked, start=1):
        ids[decode_mask(instance.segmentation, size_hw)] = number
    seen = set(np.unique(ids).tolist())
    return SegmentMap(
        ids=ids,
        segments=tuple(
            LabelledSegment(id=n, category_id=i.category_id, is_crowd=i.is_crowd)
            for n, i in enumerate(masked, start=1)
            if n in seen
        ),
    )


def _by_class(label_map: LabelMap, classes: Int[ndarray, "h w"]) -> SegmentMap:
    categories = list(dict.fromkeys(label_map.category_of.values()))
    ids = np.zeros(classes.shape, np.int32)
    segments: dict[int, LabelledSegment] = {}
    for value in np.unique(classes).tolist():
        category_id = label_map.category_of.get(value)
        if category_id is not None:
            number = categories.index(category_id) + 1
            ids[classes == value] = number
            segments[number] = LabelledSegment(id=number, category_id=category_id)
    return SegmentMap(ids=ids, segments=tuple(segments[number] for number in sorted(segments)))


def _index(label_map: LabelMap) -> SegmentMap:
    return _by_class(label_map, _read_picture(label_map.path, 2).astype(np.int64))


def _mat(label_map: LabelMap) -> SegmentMap:
    try:
        classes = loadmat(label_map.path)["LabelMap"]
    # a damaged file can raise nearly anything, from KeyError to zlib's own
    except Exception as error:
        raise DataError(
            f"{label_map.path}: must be a MATLAB file with `LabelMap` [h, w]; got {error!r}."
        ) from error
    return _by_class(label_map, np.asarray(classes).astype(np.int64))


def _ade_rgb(label_map: LabelMap) -> SegmentMap:
    pixels = _read_picture(label_map.path, 3)[:, :, :3].astype(np.int64)  # [h, w, 3]
    return _by_class(label_map, pixels[:, :, 0] // 10 * 256 + pixels[:, :, 1])


def _cityscapes(label_map: LabelMap) -> SegmentMap:
    ids = _read_picture(label_map.path, 2).astype(np.int32)
    segments = []
    for value in np.unique(ids).tolist():
        has_object = value >= _OBJECTS_PER_CLASS
        label = value // _OBJECTS_PER_CLASS if has_object else value
        category_id = label_map.category_of.get(label)
        if category_id is None:
            ids[ids == value] = 0
            continue
        is_crowd = not has_object and label in label_map.object_classes
        segments.append(LabelledSegment(id=value, category_id=category_id, is_crowd=is_crowd))
    return SegmentMap(ids=ids, segments=tuple(segments))


def _bdd_rgba(label_map: LabelMap) -> SegmentMap:
    pixels = _read_picture(label_map.path, 3)
    if pixels.shape[2] != 4:
        raise DataError(f"{label_map.path}: must be an RGBA bitmask; got {list(pixels.shape)}.")
    red, green, blue, alpha = np.moveaxis(pixels.astype(np.int32), 2, 0)
    is_object = np.isin(red, list(label_map.object_classes))
    ids = (red << 16) | np.where(is_object, (blue << 8) | alpha, 0)
    ids[~np.isin(red, list(label_map.category_of))] = 0
    crowds = set(np.unique(ids[(green & _BDD_CROWD_FLAGS) > 0]).tolist())
    return SegmentMap(
        ids=ids,
        segments=tuple(
            LabelledSegment(
                id=value,
                category_id=label_map.category_of[value >> 16],
                is_crowd=value in crowds and value >> 16 in label_map.object_classes,
            )
            for value in np.unique(ids).tolist()
            if value
        ),
    )


def _class_and_object(label_map: LabelMap) -> SegmentMap:
    if label_map.object_path is None:
        raise DataError(f"{label_map.path}: a picture of objects must belong to it; got none.")
    classes = _read_picture(label_map.path, 2).astype(np.int64)
    objects = _read_picture(label_map.object_path, 2).astype(np.int32)
    if objects.shape != classes.shape:
        raise DataError(
            f"{label_map.object_path}: must have the size of {label_map.path.name} "
            f"{list(classes.shape)}; got {list(objects.shape)}."
        )
    segments = []
    for number in np.unique(objects).tolist():
        # borders may carry a neighbour's class
        values, counts = np.unique(classes[objects == number], return_counts=True)
        category_id = label_map.category_of.get(int(values[counts.argmax()]))
        if number == 0 or category_id is None:
            objects[objects == number] = 0
            continue
        segments.append(LabelledSegment(id=number, category_id=category_id))
    return SegmentMap(ids=objects, segments=tuple(segments))


_READERS: dict[LabelCode, Callable[[LabelMap], SegmentMap]] = {
    "index": _index,
    "mat": _mat,
    "ade_rgb": _ade_rgb,
    "cityscapes": _cityscapes,
    "bdd_rgba": _bdd_rgba,
    "class_and_object": _class_and_object,
}


def _read_picture(path: Path, num_dims: int) -> ndarray:
    try:
        # a palette picture gives its indices here, not its colours
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not a readable label map ({error}).") from error
    if pixels.ndim != num_dims or pixels.dtype.kind not in "ui":
        raise DataError(
            f"{path}: a label map must be an integer picture with {num_dims} dimensions; "
            f"got {pixels.dtype} {list(pixels.shape)}."
        )
    return pixels
