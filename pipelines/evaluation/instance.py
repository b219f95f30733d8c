"""Average precision of instance masks (and boxes), by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


@dataclass(frozen=True, kw_only=True)
class InstanceScores:
    """COCO's twelve figures (0..1, -1 where nothing counts), and AP by category id."""

    ap: float
    ap50: float
    ap75: float
    stats: tuple[float, ...]
    per_class_ap: Mapping[int, float]


def encode_mask(region: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """The run-length code of a region, as COCO results carry it (counts as text)."""
    code = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


def decode_mask(code: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    """The region of a run-length code."""
    return coco_mask.decode(dict(code)).astype(bool)


def mask_result(
    *, image_id: int, category_id: int, score: float, region: Bool[np.ndarray, "h w"]
) -> dict[str, Any]:
    """One entry of a COCO results file, at the original size of the image."""
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "segmentation": encode_mask(region),
    }


def box_result(
    *, image_id: int, category_id: int, score: float, box_xywh_px: Sequence[float]
) -> dict[str, Any]:
    """The same of a box."""
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "bbox": list(box_xywh_px),
    }


def box_of_mask(code: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """The box around a run-length code: x, y, width, height; zeros of an empty one."""
    x, y, width, height = coco_mask.toBbox(dict(code)).tolist()
    return x, y, width, height


def coco_of(document: Mapping[str, Any]) -> COCO:
    """COCO's index over ground truth that is already in memory."""
    truth = COCO()
    truth.dataset = {"info": {}, **document}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def score_instances(
    *,
    truth: COCO,
    results: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
    kind: str = "segm",
) -> InstanceScores:
    """COCO average precision of results over some images; at most 100 results an image.

    kind: "segm" or "bbox". Results of other images and categories do not count. Sizes of objects
    are those of their masks where masks are compared, also if results carry boxes.

    Source: cocodataset/cocoapi, PythonAPI/pycocotools/cocoeval.py; the boxes are left out as in
    facebookresearch/detectron2, evaluation/coco_evaluation.py.
    """
    unused = {"bbox"} if kind == "segm" else set()
    wanted = set(image_ids)
    kept = [
        {key: value for key, value in row.items() if key not in unused}
        for row in results
        if row["image_id"] in wanted
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, _load(truth, kept), kind)
        evaluation.params.imgIds = sorted(wanted)
        evaluation.evaluate()
        evaluation.accumulate()
    stats = _twelve(evaluation)
    return InstanceScores(
        ap=stats[0], ap50=stats[1], ap75=stats[2], stats=stats, per_class_ap=_per_class(evaluation)
    )


def _load(truth: COCO, results: list[dict[str, Any]]) -> COCO:
    # loadRes needs a first entry to tell masks from boxes
    return truth.loadRes(results) if results else coco_of({**truth.dataset, "annotations": []})


def _twelve(evaluation: COCOeval) -> tuple[float, ...]:
    """The official summary; the order of its sums is written out, as numpy's has changed."""
    # [thresholds, recalls, classes, areas, maxDets] and the same without recalls
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    at = {t: int(np.abs(evaluation.params.iouThrs - t).argmin()) for t in (0.5, 0.75)}
    parts = [
        precision[..., 0, -1],
        precision[at[0.5], ..., 0, -1],
        precision[at[0.75], ..., 0, -1],
        *(precision[..., area, -1] for area in (1, 2, 3)),
        *(recall[..., 0, limit] for limit in (0, 1, 2)),
        *(recall[..., area, -1] for area in (1, 2, 3)),
    ]
    return tuple(_mean(part[part > -1].tolist()) for part in parts)


def _mean(values: list[float]) -> float:
    """The mean by pairwise summation in blocks of 128, eight sums at a time; -1 of nothing."""
    return _sum(values) / len(values) if values else -1.0


def _sum(values: list[float]) -> float:
    count = len(values)
    if count < 8:
        return sum(values)
    if count > 128:
        half = count // 2 - count // 2 % 8
        return _sum(values[:half]) + _sum(values[half:])
    whole = count - count % 8
    a, b, c, d, e, f, g, h = (sum(values[start:whole:8]) for start in range(8))
    return sum(values[whole:], ((a + b) + (c + d)) + ((e + f) + (g + h)))


def _per_class(evaluation: COCOeval) -> dict[int, float]:
    # [thresholds, recalls, classes, areas, maxDets]; all areas, the largest maxDets
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for index, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, index]
        if (values > -1).any():
            per_class[int(category)] = float(values[values > -1].mean())
    return per_class
