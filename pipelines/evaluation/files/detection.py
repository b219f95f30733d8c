"""Average precision of masks or boxes in COCO's results format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_codec

from pipelines.errors import DataError
from pipelines.evaluation.files.reading import (
    check_distinct,
    check_known,
    field_of,
    read_json,
    rle_of,
    rows_of,
)
from pipelines.evaluation.files.result import FileScores
from pipelines.evaluation.instance import coco_of, score_instances

FORMAT = """instance, box: COCO results against a COCO instances file
  predictions.json    [{"image_id": 42, "category_id": 18, "score": 0.236,
                        "segmentation": {"size": [478, 640], "counts": "VQi31m>0O..."},
                        "bbox": [258.15, 41.29, 348.26, 243.78]}, ...]     x, y, width, height
  truth.json          {"images": [{"id", "height", "width"}], "categories": [{"id", "name"}],
                       "annotations": [{"image_id", "category_id", "segmentation", "bbox", "area",
                       "iscrowd"}]}
  Masks are RLE (compressed or not) or polygons at the image's own size. `instance` needs masks;
  `box` takes "bbox", or the box of the mask. Images without a result count; at most 100 results
  an image do."""
PROTOCOLS = {
    "instance": "coco-segm/maxdets-100/area-of-mask",
    "box": "coco-bbox/maxdets-100",
}
NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
_OFFICIAL = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def score_detection_files(*, predictions: Path, truth: Path, metric: str) -> FileScores:
    """The twelve figures of COCO, and AP by class; figures without any object are absent (None).

    metric: "instance" compares masks, "box" boxes.

    Raises:
        DataError: a file is missing or damaged, or predictions and truth do not fit together.
    """
    notes: list[str] = []
    document = _truth(truth, metric, notes)
    sizes = {row["id"]: _size_hw(row) for row in document["images"]}
    names = {int(row["id"]): str(row.get("name", row["id"])) for row in document["categories"]}
    rows = _results(predictions, truth, metric, sizes, names)
    scores = score_instances(
        truth=coco_of(document),
        results=rows,
        image_ids=list(sizes),
        kind="segm" if metric == "instance" else "bbox",
    )
    # COCO writes -1 where there is no object to find
    figures = [value if value > -1 else None for value in scores.stats]
    return FileScores(
        protocol=PROTOCOLS[metric],
        values=dict(zip(NAMES, figures, strict=True)),
        official={
            **dict(zip(_OFFICIAL, scores.stats, strict=True)),
            "stats": list(scores.stats),
        },
        per_class={names[key]: {"ap": value} for key, value in scores.per_class_ap.items()},
        truth_files=(truth,),
        prediction_files=(predictions,),
        details={
            "num_images": len(sizes),
            "num_images_with_results": len({row["image_id"] for row in rows}),
            "num_objects": len(document["annotations"]),
            "num_results": len(rows),
            "num_classes_in_mean": len(scores.per_class_ap),
        },
        notes=tuple(notes),
    )


def _truth(path: Path, metric: str, notes: list[str]) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, Mapping) or not {"images", "annotations"} <= set(document):
        raise DataError(f"{path}: must be an object with `images`, `annotations` and `categories`.")
    images, annotations = rows_of(path, document, "images"), rows_of(path, document)
    categories = document.get("categories") or [
        {"id": key} for key in sorted({row["category_id"] for row in annotations})
    ]
    check_distinct(path, [row["id"] for row in images], "image id")
    check_distinct(path, [row["id"] for row in categories], "category id")
    sizes = {row["id"]: _size_hw(row) for row in images}
    filled = [_annotation(path, index, row, sizes, metric) for index, row in enumerate(annotations)]
    known = {row["id"] for row in categories}
    check_known(path, [row["category_id"] for row in filled], known, "category_id", truth=path)
    if len({row.get("id", 0) for row in filled} - {0}) != len(filled):
        # the official tool takes id 0 for "not matched" and keeps one annotation of each id
        notes.append("annotations are numbered anew: their ids were missing, equal or 0")
        filled = [{**row, "id": index} for index, row in enumerate(filled, start=1)]
    return {**document, "images": images, "annotations": filled, "categories": categories}


def _annotation(
    path: Path,
    index: int,
    row: dict[str, Any],
    sizes: Mapping[Any, tuple[int, int] | None],
    metric: str,
) -> dict[str, Any]:
    image_id = field_of(path, index, row, "image_id")
    field_of(path, index, row, "category_id")
    if image_id not in sizes:
        raise DataError(f"{path}: image_id of entry {index} must be in `images`; got {image_id!r}.")
    filled = {"iscrowd": 0, **row}
    if metric == "instance":
        field_of(path, index, row, "segmentation")
        if sizes[image_id] is None:
            raise DataError(f"{path}: image {image_id} must have height and width; it has not.")
    if "area" in filled and ("bbox" in filled or metric == "instance"):
        return filled
    if "bbox" in filled and metric == "box":
        return {"area": filled["bbox"][2] * filled["bbox"][3], **filled}
    code = rle_of(path, f"annotation {index}", row.get("segmentation"), sizes[image_id])
    box = [float(value) for value in rle_codec.toBbox(code)]
    return {"area": float(rle_codec.area(code)), "bbox": box, **filled}


def _results(
    path: Path,
    truth: Path,
    metric: str,
    sizes: Mapping[Any, tuple[int, int] | None],
    names: Mapping[int, str],
) -> list[dict[str, Any]]:
    rows = rows_of(path, read_json(path), "predictions", "results")
    for index, row in enumerate(rows):
        for name in ("image_id", "category_id", "score"):
            field_of(path, index, row, name)
        if not (isinstance(row["score"], int | float) and np.isfinite(row["score"])):
            raise DataError(
                f"{path}: score of entry {index} must be a number; got {row['score']!r}."
            )
    check_known(path, [row["image_id"] for row in rows], sizes, "image_id", truth=truth)
    check_known(path, [row["category_id"] for row in rows], names, "category_id", truth=truth)
    kept = ("image_id", "category_id", "score")
    return [
        {**{name: row[name] for name in kept}, **_shape(path, index, row, metric, sizes)}
        for index, row in enumerate(rows)
    ]


def _shape(
    path: Path,
    index: int,
    row: Mapping[str, Any],
    metric: str,
    sizes: Mapping[Any, tuple[int, int] | None],
) -> dict[str, Any]:
    if metric == "box" and row.get("bbox"):
        box = row["bbox"]
        if len(box) != 4 or not all(isinstance(v, int | float) and np.isfinite(v) for v in box):
            raise DataError(
                f"{path}: bbox of entry {index} must be [x, y, width, height]; got {box!r}."
            )
        return {"bbox": box}
    segmentation = field_of(path, index, row, "segmentation")
    return {"segmentation": rle_of(path, f"entry {index}", segmentation, sizes[row["image_id"]])}


def _size_hw(image: Mapping[str, Any]) -> tuple[int, int] | None:
    if "height" not in image or "width" not in image:
        return None
    return int(image["height"]), int(image["width"])
