"""Panoptic quality on files in COCO's panoptic format: a JSON and a folder of PNGs."""

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image


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


def ids_to_rgb(segment_ids: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The colours that spell segment ids in COCO's PNGs: id = R + 256 G + 65536 B."""
    ids = segment_ids.astype(np.int64)
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def rgb_to_ids(colours: UInt8[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
    """The segment ids that the colours of a COCO PNG spell."""
    return colours.astype(np.int64) @ np.array([1, 256, 65536])


class PanopticPredictions:
    """Predicted segments of images, kept as COCO writes them: PNG bytes and `segments_info`."""

    def __init__(self) -> None:
        self._pngs: dict[int, bytes] = {}
        self._segments: dict[int, list[dict[str, int]]] = {}

    def add(
        self,
        image_id: int,
        segment_ids: Int[np.ndarray, "h w"],
        category_ids: Mapping[int, int],
    ) -> None:
        """Take one image; segment id 0 is void, every other id has a category.

        Raises:
            ValueError: ids in the map and ids with a category differ.
        """
        present = {int(value) for value in np.unique(segment_ids)} - {0}
        if present != set(category_ids):
            raise ValueError(
                f"PanopticPredictions: every segment of image {image_id} must have pixels and a "
                f"category; pixels have ids {sorted(present)}, categories {sorted(category_ids)}."
            )
        buffer = io.BytesIO()
        Image.fromarray(ids_to_rgb(segment_ids)).save(buffer, format="PNG", compress_level=1)
        self._pngs[image_id] = buffer.getvalue()
        self._segments[image_id] = [
            {"id": segment, "category_id": int(category_ids[segment])}
            for segment in sorted(present)
        ]

    def merge(self, other: "PanopticPredictions") -> None:
        """Take the images of another part of the data set."""
        self._pngs.update(other._pngs)
        self._segments.update(other._segments)

    def __len__(self) -> int:
        return len(self._pngs)

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


def score_panoptic(
    *,
    truth_json: Path,
    truth_folder: Path,
    predicted_json: Path,
    predicted_folder: Path,
) -> PanopticScores:
    """Panoptic quality of prediction files against truth files, by hotcoco.

    Every image of the truth must have a prediction. Crowd and void as in panopticapi.

    Source: cocodataset/panopticapi, evaluation.py (the same numbers).
    """
    from hotcoco.panoptic import PanopticEval

    evaluation = PanopticEval(
        str(truth_json),
        str(predicted_json),
        gt_folder=str(truth_folder),
        pred_folder=str(predicted_folder),
    )
    evaluation.evaluate()
    results = evaluation.results()
    per_class = {
        int(category): PanopticScore(pq=row["pq"], sq=row["sq"], rq=row["rq"], num_classes=1)
        for category, row in results["per_class"].items()
        if row["tp"] + row["fp"] + row["fn"] > 0
    }
    return PanopticScores(
        all=_group_score(results["All"]),
        things=_group_score(results["Things"]),
        stuff=_group_score(results["Stuff"]),
        per_class=per_class,
    )


def score_predictions(
    predictions: PanopticPredictions,
    *,
    truth_json: Path,
    truth_folder: Path,
    image_ids: Sequence[int],
) -> PanopticScores:
    """Panoptic quality over some of the images of a truth file."""
    truth = json.loads(truth_json.read_text())
    wanted = set(image_ids)
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] in wanted]
    truth["images"] = [row for row in truth["images"] if row["id"] in wanted]
    with tempfile.TemporaryDirectory() as scratch:
        subset, predicted = Path(scratch, "truth.json"), Path(scratch, "predicted.json")
        subset.write_text(json.dumps(truth))
        predictions.write(predicted)
        return score_panoptic(
            truth_json=subset,
            truth_folder=truth_folder,
            predicted_json=predicted,
            predicted_folder=predicted.with_suffix(""),
        )


def _group_score(row: Mapping[str, float]) -> PanopticScore:
    count = int(row["n"])
    if count == 0:
        return PanopticScore(pq=np.nan, sq=np.nan, rq=np.nan, num_classes=0)
    return PanopticScore(pq=row["pq"], sq=row["sq"], rq=row["rq"], num_classes=count)
