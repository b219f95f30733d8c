"""Caption metrics of results in COCO's format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.evaluation.captions import score_captions
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

FORMAT = """caption: COCO caption results against a COCO captions file
  predictions.json    [{"image_id": 404464, "caption": "a man in front of a building"}, ...]
                      or {"404464": "a man in front of a building", ...}
  truth.json          {"annotations": [{"image_id": 404464, "caption": "A man ..."}, ...]}
                      or {"404464": ["A man ...", ...], ...}
  As in coco-caption, the images of the results count, and every one must be in the truth.
  --java auto: Stanford's tokenizer and METEOR where `java` is on the path, else our own tokenizer
  (the same tokens) and no METEOR; never, need."""


def score_caption_files(*, predictions: Path, truth: Path, java: str = "auto") -> FileScores:
    """BLEU-1 to 4, ROUGE-L, CIDEr, METEOR, and CIDEr by image.

    Raises:
        DataError: a file is missing or damaged, or predictions and truth do not fit together.
        ConfigError: Java is needed and not there.
    """
    references, hypotheses = _references(truth), _hypotheses(predictions)
    check_known(predictions, hypotheses, references, "image_id", truth=truth)
    if not hypotheses:
        raise DataError(f"{predictions}: must hold at least one caption; there is none.")
    left = set(references) - set(hypotheses)
    # in the order of the truth, as the official tool sums
    asked = {key: value for key, value in references.items() if key in hypotheses}
    hypotheses = {key: hypotheses[key] for key in asked}
    scores = score_captions(asked, hypotheses, java=java)
    values: dict[str, float | None] = {f"bleu{n}": v for n, v in enumerate(scores.bleu, start=1)}
    values |= {"rouge_l": scores.rouge_l, "cider": scores.cider, "meteor": scores.meteor}
    official = {f"BLEU-{n}": value for n, value in enumerate(scores.bleu, start=1)}
    official |= {"ROUGE_L": scores.rouge_l, "CIDEr": scores.cider}
    if scores.meteor is not None:
        official["METEOR"] = scores.meteor
    covered = "all-images" if not left else f"{len(asked)}-of-{len(references)}-images"
    return FileScores(
        protocol=f"coco-caption/{scores.tokenizer}/{covered}",
        values=values,
        official=official,
        per_item={str(key): value for key, value in scores.cider_per_image.items()},
        truth_files=(truth,),
        prediction_files=(predictions,),
        details={
            "num_images": len(asked),
            "num_images_in_truth": len(references),
            "num_references": sum(map(len, asked.values())),
            "tokenizer": scores.tokenizer,
            **scores.tokenizer_check,
        },
        skipped=scores.skipped,
        notes=(f"{len(left)} images of the truth have no caption: {some(left)}",) if left else (),
    )


def _hypotheses(path: Path) -> dict[str, str]:
    document = read_json(path)
    if isinstance(document, Mapping) and all(
        isinstance(value, str) or _is_single(value) for value in document.values()
    ):
        return {
            str(key): value if isinstance(value, str) else value[0]
            for key, value in document.items()
        }
    pairs = _captions(path, document)
    check_distinct(path, [key for key, _ in pairs], "image_id")
    return dict(pairs)


def _references(path: Path) -> dict[str, list[str]]:
    document = read_json(path)
    has_rows = isinstance(document, list) or "annotations" in document
    if not has_rows:
        wrong = [key for key, value in document.items() if not _is_texts(value)]
        if wrong or not document:
            raise DataError(
                f"{path}: must be COCO captions with `annotations`, or an object from image to "
                f"a list of captions; got {shape_of(document)}."
            )
        return {str(key): list(value) for key, value in document.items()}
    pairs = _captions(path, document)
    listed = document.get("images", []) if isinstance(document, Mapping) else []
    order = [str(row["id"]) for row in listed if "id" in row] + [key for key, _ in pairs]
    references: dict[str, list[str]] = {key: [] for key in order}
    for key, caption in pairs:
        references[key].append(caption)
    return {key: value for key, value in references.items() if value}


def _captions(path: Path, document: Any) -> list[tuple[str, str]]:
    pairs = []
    for index, row in enumerate(rows_of(path, document, "results", "predictions")):
        caption = field_of(path, index, row, "caption")
        if not isinstance(caption, str):
            raise DataError(f"{path}: caption of entry {index} must be text; got {caption!r}.")
        pairs.append((str(field_of(path, index, row, "image_id")), caption))
    return pairs


def _is_single(value: Any) -> bool:
    return _is_texts(value) and len(value) == 1


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
