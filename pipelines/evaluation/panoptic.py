"""Panoptic quality, and predictions in COCO's panoptic format: a JSON and a folder of PNGs."""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

VOID = 0


@dataclass(frozen=True, kw_only=True)
class PanopticScore:
    """Panoptic, segmentation and recognition quality, 0..1, over the classes that occur.

    num_classes: how many classes the mean is taken over (those with any segment, true or
    predicted); NaN where there is none.
    """

    pq: float
    sq: float
    rq: float
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class PanopticScores:
    """Scores over all classes, things, stuff, and each class (0..1) by category id."""

    all: PanopticScore
    things: PanopticScore
    stuff: PanopticScore
    per_class: Mapping[int, PanopticScore]


@dataclass(frozen=True, kw_only=True)
class TrueSegment:
    """A segment of the ground truth; area as its file says, else counted in the map."""

    id: int
    category_id: int
    is_crowd: bool = False
    area: int | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentMatches:
    """What one image adds: overlap of each matched pair, and the segments that found nobody.

    Categories throughout; `matched` holds (category, IoU) in rising order of true, then predicted
    segment id.
    """

    matched: tuple[tuple[int, float], ...]
    missed: tuple[int, ...]
    invented: tuple[int, ...]

    @property
    def quality(self) -> float:
        """Panoptic quality of the image over all classes together; NaN without a segment."""
        weight = len(self.matched) + (len(self.missed) + len(self.invented)) / 2
        return sum(overlap for _, overlap in self.matched) / weight if weight else np.nan


def match_segments(
    truth_ids: Int[np.ndarray, "h w"],
    truth: Iterable[TrueSegment],
    found_ids: Int[np.ndarray, "h w"],
    found_categories: Mapping[int, int],
) -> SegmentMatches:
    """Pairs of true and predicted segments of one image with an IoU above one half.

    Void (id 0) is taken out of every union; crowds are never missed, and a prediction that lies
    for more than half in void and in the crowd of its class is not counted as invented.

    Raises:
        ValueError: the maps differ in size, or predicted ids of map and list differ.

    Source: cocodataset/panopticapi, evaluation.py: the same rules in the same order of sums.
    """
    _check_maps(truth_ids, found_ids, found_categories)
    true = {segment.id: segment for segment in truth}
    shared = _overlaps(truth_ids, found_ids)
    found_area = _areas(shared, 1)
    in_void = {found: count for (label, found), count in shared.items() if label == VOID}
    map_area = _areas(shared, 0)
    matched, seen_true, seen_found = [], set(), set()
    for (label, found), count in shared.items():
        segment = true.get(label)
        if segment is None or segment.is_crowd or found not in found_categories:
            continue
        if segment.category_id != found_categories[found]:
            continue
        area = map_area[label] if segment.area is None else segment.area
        overlap = count / (found_area[found] + area - count - in_void.get(found, 0))
        if overlap > 0.5:
            matched.append((segment.category_id, float(overlap)))
            seen_true.add(label)
            seen_found.add(found)
    left = [s for s in true.values() if s.id not in seen_true]
    # of several crowds of a class only the last one listed is forgiven, as in the official tool
    crowds = {segment.category_id: segment.id for segment in left if segment.is_crowd}
    invented = []
    for found, category in found_categories.items():
        crowd = shared.get((crowds[category], found), 0) if category in crowds else 0
        forgiven = in_void.get(found, 0) + crowd
        if found not in seen_found and forgiven / found_area[found] <= 0.5:
            invented.append(category)
    return SegmentMatches(
        matched=tuple(matched),
        missed=tuple(segment.category_id for segment in left if not segment.is_crowd),
        invented=tuple(invented),
    )


@dataclass
class PanopticTally:
    """Sums over images, added in the order of arrival; scores are exact in that order."""

    is_thing: Mapping[int, bool]
    overlap: dict[int, float] = field(default_factory=dict)
    counts: dict[int, list[int]] = field(default_factory=dict)

    def add(self, matches: SegmentMatches) -> None:
        """Take one image.

        Raises:
            ValueError: a segment has a category that is not in the list.
        """
        unknown = {c for c, _ in matches.matched} | {*matches.missed, *matches.invented}
        unknown -= set(self.is_thing)
        if unknown:
            raise ValueError(
                f"PanopticTally: category_id must be among the {len(self.is_thing)} categories of "
                f"the ground truth; got {sorted(unknown)}. Map classes back to the file's ids."
            )
        for category, overlap in matches.matched:
            self.overlap[category] = self.overlap.get(category, 0.0) + overlap
            self._count(category, 0)
        for category in matches.missed:
            self._count(category, 1)
        for category in matches.invented:
            self._count(category, 2)

    def result(self) -> PanopticScores:
        """Qualities of the classes that occur, and their means."""
        per_class = {c: self._of_class(c) for c in self.is_thing if c in self.counts}
        return PanopticScores(
            all=_mean(list(per_class.values())),
            things=_mean([score for c, score in per_class.items() if self.is_thing[c]]),
            stuff=_mean([score for c, score in per_class.items() if not self.is_thing[c]]),
            per_class=per_class,
        )

    def _count(self, category: int, place: int) -> None:
        self.counts.setdefault(category, [0, 0, 0])[place] += 1

    def _of_class(self, category: int) -> PanopticScore:
        matched, missed, invented = self.counts[category]
        overlap = self.overlap.get(category, 0.0)
        weight = matched + 0.5 * invented + 0.5 * missed
        return PanopticScore(
            pq=overlap / weight,
            sq=overlap / matched if matched else 0.0,
            rq=matched / weight,
            num_classes=1,
        )


def ids_to_rgb(segment_ids: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The colours that spell segment ids in COCO's PNGs: id = R + 256 G + 65536 B."""
    ids = segment_ids.astype(np.int64)
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def segments_png(segment_ids: Int[np.ndarray, "h w"]) -> bytes:
    """Segment ids as COCO's PNG."""
    buffer = io.BytesIO()
    Image.fromarray(ids_to_rgb(segment_ids)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


class PanopticPredictions:
    """Predicted segments of images, kept as COCO writes them: PNG bytes and `segments_info`."""

    def __init__(self) -> None:
        self._pngs: dict[int, bytes] = {}
        self._segments: dict[int, list[dict[str, int]]] = {}

    def add_png(self, image_id: int, png: bytes, category_ids: Mapping[int, int]) -> None:
        """Take one image as `segments_png` codes it, with the category of each segment."""
        self._pngs[image_id] = png
        self._segments[image_id] = [
            {"id": segment, "category_id": int(category_ids[segment])}
            for segment in sorted(category_ids)
        ]

    def write(self, json_path: Path) -> None:
        """Write COCO's panoptic results: the JSON, and PNGs in a folder named like it."""
        folder = json_path.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        annotations = []
        for image_id in sorted(self._pngs):
            file_name = f"{image_id:012d}.png"
            (folder / file_name).write_bytes(self._pngs[image_id])
            segments = self._segments[image_id]
            annotations.append(
                {"image_id": image_id, "file_name": file_name, "segments_info": segments}
            )
        json_path.write_text(json.dumps({"annotations": annotations}))


def _mean(scores: list[PanopticScore]) -> PanopticScore:
    count = len(scores)
    if not count:
        return PanopticScore(pq=np.nan, sq=np.nan, rq=np.nan, num_classes=0)
    # plain sums in the order of the categories: numpy's would round differently
    return PanopticScore(
        pq=sum(score.pq for score in scores) / count,
        sq=sum(score.sq for score in scores) / count,
        rq=sum(score.rq for score in scores) / count,
        num_classes=count,
    )


def _check_maps(
    truth_ids: Int[np.ndarray, "h w"],
    found_ids: Int[np.ndarray, "h2 w2"],
    found_categories: Mapping[int, int],
) -> None:
    if truth_ids.shape != found_ids.shape:
        raise ValueError(
            f"panoptic: truth and prediction must have one size; got {truth_ids.shape} and "
            f"{found_ids.shape}. Predict at the original size of the image."
        )
    present = {int(value) for value in np.unique(found_ids)} - {VOID}
    if present != set(found_categories):
        odd = sorted(present ^ set(found_categories))
        raise ValueError(
            f"panoptic: the predicted map and segments_info must have the same ids, without 0; "
            f"{odd[:5]} occur in only one of them."
        )


def _overlaps(
    truth_ids: Int[np.ndarray, "h w"], found_ids: Int[np.ndarray, "h w"]
) -> dict[tuple[int, int], int]:
    """Pixels of each pair of labels that meet, in rising order of true, then predicted label."""
    true, rows = np.unique(truth_ids, return_inverse=True)
    found, columns = np.unique(found_ids, return_inverse=True)
    width = len(found)
    counts = np.bincount(rows.ravel() * width + columns.ravel(), minlength=len(true) * width)
    places = counts.nonzero()[0]
    return {
        (int(true[place // width]), int(found[place % width])): int(counts[place])
        for place in places
    }


def _areas(shared: Mapping[tuple[int, int], int], side: int) -> dict[int, int]:
    areas: dict[int, int] = {}
    for pair, count in shared.items():
        areas[pair[side]] = areas.get(pair[side], 0) + count
    return areas
