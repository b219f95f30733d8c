"""Average precision of instance masks (and boxes), by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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


def score_instances(
    *,
    truth_json: Path,
    results: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
    kind: str = "segm",
) -> InstanceScores:
    """COCO average precision of results over some images; at most 100 results an image.

    kind: "segm" or "bbox". Results of other images and categories do not count.

    Source: cocodataset/cocoapi, PythonAPI/pycocotools/cocoeval.py.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_json))
        truth.dataset.setdefault("info", {})
        wanted = set(image_ids)
        kept = [dict(row) for row in results if row["image_id"] in wanted]
        evaluation = COCOeval(truth, _load(truth, kept), kind)
        evaluation.params.imgIds = sorted(wanted)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = tuple(float(value) for value in evaluation.stats)
    return InstanceScores(
        ap=stats[0], ap50=stats[1], ap75=stats[2], stats=stats, per_class_ap=_per_class(evaluation)
    )


def _load(truth: COCO, results: list[dict[str, Any]]) -> COCO:
    if results:
        return truth.loadRes(results)
    # loadRes needs a first entry to tell masks from boxes
    nothing = COCO()
    nothing.dataset = {**truth.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


def _per_class(evaluation: COCOeval) -> dict[int, float]:
    # [thresholds, recalls, classes, areas, maxDets]; all areas, the largest maxDets
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for index, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, index]
        if (values > -1).any():
            per_class[int(category)] = float(values[values > -1].mean())
    return per_class
