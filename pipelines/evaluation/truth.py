"""The true segments of an image, from a panoptic PNG or a data set's own label map."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from pipelines.data.coco import CocoRecord, read_segment_ids
from pipelines.data.label_maps import read_label_map
from pipelines.evaluation.panoptic import TrueSegment


class TrueMap(NamedTuple):
    """Segment ids by pixel, 0 where unlabelled, and the segments."""

    ids: Int[np.ndarray, "h w"]
    segments: tuple[TrueSegment, ...]


def has_segments(record: CocoRecord) -> bool:
    """Whether every pixel of the image is annotated."""
    return record.label_map is not None or record.panoptic_path is not None


def true_map(record: CocoRecord) -> TrueMap:
    """The annotated segments of an image that `has_segments`.

    Raises:
        DataError: the file is missing or damaged.
    """
    if record.label_map is not None:
        read = read_label_map(record.label_map)
        segments = tuple(
            TrueSegment(id=each.id, category_id=each.category_id, is_crowd=each.is_crowd)
            for each in read.segments
        )
        return TrueMap(read.ids, segments)
    assert record.panoptic_path is not None
    listed = tuple(
        TrueSegment(
            id=segment.id,
            category_id=segment.category_id,
            is_crowd=segment.is_crowd,
            area=segment.area,
        )
        for segment in record.segments or ()
    )
    return TrueMap(read_segment_ids(record.panoptic_path), listed)
