"""Panoptic quality of a panoptic JSON with its PNGs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.data.coco import Category, read_segment_ids
from pipelines.errors import DataError
from pipelines.evaluation.files.reading import (
    check_distinct,
    check_known,
    field_of,
    read_json,
    rows_of,
    shape_of,
    some,
)
from pipelines.evaluation.files.result import FileScores
from pipelines.evaluation.panoptic import (
    VOID,
    PanopticScore,
    PanopticScores,
    PanopticTally,
    SegmentMatches,
    TrueSegment,
    match_segments,
)

FORMAT = """panoptic: COCO's panoptic results, a JSON and PNGs (id = R + 256 G + 65536 B)
  predictions.json    {"annotations": [{"image_id": 139, "file_name": "000000000139.png",
                        "segments_info": [{"id": 7919, "category_id": 1}, ...]}, ...]}
  truth.json          the same with "categories" [{"id", "name", "isthing"}]; crowds "iscrowd": 1
  The PNGs lie in a folder named like the JSON without .json, beside the JSON, or where
  --predictions-folder and --ground-truth-folder say. 0 is void. Every image of the truth needs a
  prediction; PNG and JSON must name the same ids."""
PROTOCOL = "coco-panoptic/crowd-and-void-forgiven/classes-that-occur"


def score_panoptic_files(
    *,
    predictions: Path,
    truth: Path,
    predictions_folder: Path | None = None,
    truth_folder: Path | None = None,
) -> FileScores:
    """PQ, SQ and RQ over all classes, things and stuff, and of each class.

    Raises:
        DataError: a file is missing or damaged, or predictions and truth do not fit together.
    """
    true_side = _Side(truth, truth_folder)
    found_side = _Side(predictions, predictions_folder)
    categories = true_side.categories()
    tally = PanopticTally(is_thing={key: row.is_thing for key, row in categories.items()})
    missing = [image_id for image_id in true_side.rows if image_id not in found_side.by_image]
    if missing:
        raise DataError(
            f"{predictions}: must have a prediction for every image of {truth.name}; "
            f"{len(missing)} of {len(true_side.rows)} lack one: {some(missing)}. "
            "An image in which nothing is found needs an entry with empty segments_info."
        )
    quality: dict[str, float] = {}
    for image_id in true_side.rows:
        matches = _matches(true_side, found_side, image_id, categories)
        tally.add(matches)
        if matches.matched or matches.missed or matches.invented:
            quality[str(image_id)] = matches.quality
    scores = tally.result()
    used = list(true_side.rows)
    return FileScores(
        protocol=PROTOCOL,
        values=values_of(scores),
        official=_official(scores, categories),
        per_class={categories[key].name: _three(row) for key, row in scores.per_class.items()},
        per_item=quality,
        truth_files=(truth, *(true_side.png_of(image_id) for image_id in used)),
        prediction_files=(predictions, *(found_side.png_of(image_id) for image_id in used)),
        details={
            "num_images": len(used),
            "num_images_predicted": len(found_side.rows),
            "num_classes_in_mean": scores.all.num_classes,
            "num_classes": len(categories),
        },
    )


def _official(scores: PanopticScores, categories: Mapping[int, Category]) -> dict[str, Any]:
    """The figures as the official tool prints them: absent classes as 0, though in no mean."""
    groups = {"All": scores.all, "Things": scores.things, "Stuff": scores.stuff}
    nothing = {"pq": 0.0, "sq": 0.0, "rq": 0.0}
    found = {key: _three(row) for key, row in scores.per_class.items()}
    return {
        **{name: {**_three(score), "n": score.num_classes} for name, score in groups.items()},
        "per_class": {str(key): found.get(key, nothing) for key in categories},
    }


class _Side:
    """One JSON with its PNGs."""

    def __init__(self, path: Path, folder: Path | None) -> None:
        self.path = _json_of(path)
        self.document = read_json(self.path)
        rows = rows_of(self.path, self.document)
        self.rows = [field_of(self.path, i, row, "image_id") for i, row in enumerate(rows)]
        self.by_image = dict(zip(self.rows, rows, strict=True))
        check_distinct(self.path, self.rows, "image_id")
        self.folder = folder or self._folder_beside(rows)

    def categories(self) -> dict[int, Category]:
        """The classes of the truth by id.

        Raises:
            DataError: there are none, or one lacks a field.
        """
        entries = self.document.get("categories") if isinstance(self.document, Mapping) else None
        try:
            categories = [
                Category(
                    id=int(row["id"]),
                    name=str(row.get("name", row["id"])),
                    is_thing=bool(row["isthing"]),
                )
                for row in entries or ()
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.path}: every entry of `categories` must have id and isthing; lacks {error}."
            ) from error
        if not categories:
            raise DataError(
                f"{self.path}: the ground truth must list `categories` with id and isthing; "
                f"got {shape_of(self.document)}."
            )
        check_distinct(self.path, [category.id for category in categories], "category id")
        return {category.id: category for category in categories}

    def png_of(self, image_id: Any) -> Path:
        """The picture of an image's segments."""
        row = self.by_image[image_id]
        return self.folder / str(row.get("file_name", f"{image_id:012d}.png"))

    def segments(self, image_id: Any) -> list[dict[str, Any]]:
        """The listed segments of an image, each with id and category_id.

        Raises:
            DataError: a field is missing, an id is void's, or occurs twice.
        """
        row = self.by_image[image_id]
        segments = row.get("segments_info", [])
        try:
            ids = [int(segment["id"]) for segment in segments]
            _ = [int(segment["category_id"]) for segment in segments]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.path}: every segment of image {image_id} must have id and category_id; "
                f"lacks {error}."
            ) from error
        if VOID in ids or len(set(ids)) != len(ids):
            raise DataError(
                f"{self.path}: segments of image {image_id} must have different ids other than "
                f"{VOID}, which is void; got {sorted(ids)[:6]}."
            )
        return segments

    def _folder_beside(self, rows: list[dict[str, Any]]) -> Path:
        named, beside = self.path.with_suffix(""), self.path.parent
        name = str(rows[0].get("file_name", "")) if rows else ""
        places = [named, beside, *sorted(path for path in beside.glob("*") if path.is_dir())]
        found = [place for place in places if name and (place / name).is_file()]
        if named.is_dir() or not rows:
            return named
        # beside the JSON, or in the only folder there that has the first picture
        if beside in found:
            return beside
        if len(found) != 1:
            raise DataError(
                f"{self.path}: its PNGs must lie in {named}; {name!r} is in "
                f"{[str(place) for place in found] or 'no folder beside it'}. Name the folder "
                "with --predictions-folder or --ground-truth-folder."
            )
        return found[0]


def _json_of(path: Path) -> Path:
    """The JSON itself, or the only one of a folder."""
    if not path.is_dir():
        return path
    inside = sorted(path.glob("*.json"))
    beside = path.with_suffix(".json")
    if beside.is_file() and not inside:
        return beside
    if len(inside) != 1:
        raise DataError(
            f"{path}: must be a panoptic JSON, or a folder with one; got {len(inside)} JSON files."
        )
    return inside[0]


def _matches(
    true_side: _Side, found_side: _Side, image_id: Any, categories: Mapping[int, Category]
) -> SegmentMatches:
    truth = [
        TrueSegment(
            id=int(row["id"]),
            category_id=int(row["category_id"]),
            is_crowd=bool(row.get("iscrowd", 0)),
            area=row.get("area"),
        )
        for row in true_side.segments(image_id)
    ]
    found = {int(row["id"]): int(row["category_id"]) for row in found_side.segments(image_id)}
    true_classes = [segment.category_id for segment in truth]
    check_known(true_side.path, true_classes, categories, "category_id", truth=true_side.path)
    check_known(found_side.path, found.values(), categories, "category_id", truth=true_side.path)
    png = found_side.png_of(image_id)
    truth_ids, found_ids = read_segment_ids(true_side.png_of(image_id)), read_segment_ids(png)
    try:
        return match_segments(truth_ids, truth, found_ids, found)
    except ValueError as error:
        raise DataError(f"{png}: {error}") from error


def values_of(scores: PanopticScores) -> dict[str, float]:
    """The flat figures: pq, sq and rq, and the same with _things and _stuff."""
    groups = {"": scores.all, "_things": scores.things, "_stuff": scores.stuff}
    return {
        f"{name}{suffix}": value
        for suffix, score in groups.items()
        for name, value in _three(score).items()
    }


def _three(score: PanopticScore) -> dict[str, float]:
    return {"pq": score.pq, "sq": score.sq, "rq": score.rq}
