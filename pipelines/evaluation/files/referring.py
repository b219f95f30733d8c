"""Overlap of regions with sentences: one RLE for each sentence on both sides."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.data.refer import read_references
from pipelines.errors import DataError
from pipelines.evaluation.files.reading import (
    check_covered,
    check_distinct,
    read_json,
    region_of,
    rows_of,
)
from pipelines.evaluation.files.result import FileScores
from pipelines.evaluation.protocols import REFER_PER_SENTENCE, REFER_PROTOCOLS
from pipelines.evaluation.referring import ReferringOverlap, ReferringScores

FORMAT = """referring: one region for each sentence, in any of these layouts on either side
  [{"sent_id": 7, "segmentation": {"size": [426, 640], "counts": "..."}}, ...]   RLE or polygons
  {"7": {"size": [426, 640], "counts": "..."}, ...}                              by sentence id
  [{"image_id": 139, "sent": "the red cup", "segmentation": ...}, ...]           by image and text
  [{"size": ..., "counts": ...}, ...]            nothing but regions: both files in the same order
  Truth may also be REFER's: refs(unc).p, or a JSON of refs with "sentences", with instances.json
  beside it (--split val chooses); or annotations with "segmentation" and "sentences".
  null or [] is an empty region. Every sentence of the truth needs a prediction.
  --protocol refer-per-sentence (default): every sentence; xdecoder-v2: the first sentence of the
  last ref of each object, as the released X-Decoder code counts."""
_ID_NAMES = ("sent_id", "sentence_id", "id")
_TEXT_NAMES = ("sent", "sentence", "phrase", "text", "expression", "raw")
_MASK_NAMES = ("segmentation", "mask", "rle", "region")
Key = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A region with every name that it goes by."""

    keys: Mapping[str, Key]
    segmentation: Any
    size_hw: tuple[int, int] | None
    object_name: str = ""
    place: int = 0


def score_referring_files(
    *,
    predictions: Path,
    truth: Path,
    split: str | None = None,
    protocol: str = REFER_PER_SENTENCE,
) -> FileScores:
    """Overall IoU (cIoU), mean IoU and precision at five thresholds, over sentences.

    Raises:
        DataError: a file is missing or damaged, or predictions and truth do not fit together.
    """
    rules = REFER_PROTOCOLS[protocol]
    true_rows, truth_files = _truth_rows(truth, split)
    if rules.is_first_sentence_only:
        true_rows = _first_sentences(true_rows)
    found_rows = list(_rows(predictions, read_json(predictions), {}))
    kind = _common_kind(predictions, truth, found_rows, true_rows)
    found = _by_key(predictions, found_rows, kind)
    true = _by_key(truth, true_rows, kind)
    if rules.is_first_sentence_only:
        found = {key: row for key, row in found.items() if key in true}
    check_covered(predictions, found, true, "sentence", truth=truth)
    overlap = ReferringOverlap(epsilon=rules.epsilon)
    per_sentence = {}
    for key, row in true.items():
        name = " ".join(key)
        region = region_of(truth, f"sentence {name}", row.segmentation, row.size_hw)
        size_hw = (region.shape[0], region.shape[1])
        answer = region_of(predictions, f"sentence {name}", found[key].segmentation, size_hw)
        per_sentence[name] = overlap.add(answer, region)
    scores = overlap.result()
    return FileScores(
        protocol=protocol,
        values=values_of(scores),
        official={
            "cIoU": scores.ciou,
            "oIoU": scores.ciou,
            "overall IoU": scores.ciou,
            "mIoU": scores.miou,
            "gIoU": scores.miou,
            **{f"P@{t}": value for t, value in zip(_THRESHOLDS, scores.precision, strict=True)},
        },
        per_item=per_sentence,
        truth_files=truth_files,
        prediction_files=(predictions,),
        details={"num_sentences": scores.num_sentences, "sentences_matched_by": kind},
    )


_THRESHOLDS = ("0.5", "0.6", "0.7", "0.8", "0.9")


def values_of(scores: ReferringScores) -> dict[str, float]:
    """The flat figures: ciou, miou, p50 .. p90."""
    precision = {f"p{50 + 10 * i}": value for i, value in enumerate(scores.precision)}
    return {"ciou": scores.ciou, "miou": scores.miou, **precision}


def _truth_rows(path: Path, split: str | None) -> tuple[list[_Row], tuple[Path, ...]]:
    path = _refer_file(path)
    beside = path.parent / "instances.json"
    if path.suffix == ".p":
        refs = [
            {
                "ref_id": ref.ref_id,
                "ann_id": ref.ann_id,
                "image_id": ref.image_id,
                "split": ref.split,
                "sentences": [{"sent_id": s.id, "sent": s.text} for s in ref.sentences],
            }
            for ref in read_references(path)
        ]
        document: Any = refs
    else:
        document = read_json(path)
    if isinstance(document, list) and split:
        document = [row for row in document if row.get("split", split) == split]
    needs_objects = isinstance(document, list) and any(
        "ann_id" in row and not _mask_name(row) for row in document if isinstance(row, Mapping)
    )
    objects = _objects(beside) if needs_objects else {}
    rows = list(_rows(path, document, objects))
    if not rows:
        raise DataError(
            f"{path}: must hold at least one sentence{f' of split {split!r}' if split else ''}; "
            "there is none."
        )
    return rows, (path, beside) if needs_objects else (path,)


def _refer_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("refs(*).p"))
    if len(found) != 1:
        raise DataError(
            f"{path}: must be a file, or a folder with one refs(...).p; it has {len(found)}. "
            "Name the file."
        )
    return found[0]


def _objects(path: Path) -> dict[Any, dict[str, Any]]:
    """The annotations of REFER's second file by id, each with the size of its image."""
    document = read_json(path)
    sizes = _image_sizes(document)
    return {
        row["id"]: {**row, "image_size": sizes.get(row["image_id"])}
        for row in rows_of(path, document)
    }


def _image_sizes(document: Any) -> dict[Any, tuple[int, int]]:
    images = document.get("images", []) if isinstance(document, Mapping) else []
    return {
        row["id"]: (int(row["height"]), int(row["width"]))
        for row in images
        if {"id", "height", "width"} <= set(row)
    }


def _rows(path: Path, document: Any, objects: Mapping[Any, Mapping[str, Any]]) -> Iterator[_Row]:
    sizes = _image_sizes(document)
    entries = _entries(path, document)
    for index, entry in enumerate(entries):
        owner: Mapping[str, Any] = entry
        if not _mask_name(entry) and "ann_id" in entry:
            owner = objects.get(entry["ann_id"], {})
        name = _mask_name(owner)
        if not name and "counts" not in entry:
            raise DataError(
                f"{path}: entry {index} must have a region under {' or '.join(_MASK_NAMES)}, or "
                f"an ann_id of instances.json beside it; it has {sorted(entry)}."
            )
        size_hw = owner.get("image_size") or sizes.get(entry.get("image_id")) or _own_size(entry)
        for sentence in entry.get("sentences", [{}]):
            merged = {
                **entry,
                **(sentence if isinstance(sentence, Mapping) else {"sent": sentence}),
            }
            yield _Row(
                keys=_keys(merged, index),
                segmentation=owner[name] if name else entry,
                size_hw=size_hw,
                object_name=str(entry.get("ann_id", entry.get("id", index))),
                place=index,
            )


def _entries(path: Path, document: Any) -> Sequence[dict[str, Any]]:
    names = ("sentences", "predictions", "results", "refs")
    if isinstance(document, Mapping) and not {*names, "annotations"} & set(document):
        return [{"sent_id": key, "segmentation": value} for key, value in document.items()]
    return rows_of(path, document, *names)


def _mask_name(entry: Mapping[str, Any]) -> str:
    return next((name for name in _MASK_NAMES if name in entry), "")


def _own_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    if "height" in entry and "width" in entry:
        return int(entry["height"]), int(entry["width"])
    return None


def _keys(entry: Mapping[str, Any], index: int) -> dict[str, Key]:
    """Every way to name the sentence of an entry: by id, by image and text, by its place."""
    keys: dict[str, Key] = {"order": (str(index),)}
    ident = next((name for name in _ID_NAMES if name in entry), "")
    if ident:
        keys["sentence id"] = (str(entry[ident]),)
        if "image_id" in entry:
            keys["image and sentence id"] = (str(entry["image_id"]), str(entry[ident]))
    text = next((name for name in _TEXT_NAMES if name in entry), "")
    if text and "image_id" in entry:
        keys["image and text"] = (str(entry["image_id"]), str(entry[text]).strip().lower())
    return keys


def _common_kind(
    predictions: Path, truth: Path, found: Sequence[_Row], true: Sequence[_Row]
) -> str:
    """How the sentences of both files can be told apart: by id before text before order."""
    shared = [
        kind
        for kind in ("sentence id", "image and sentence id", "image and text")
        if all(kind in row.keys for row in (*found, *true))
    ]
    # ids that repeat in the truth number the sentences of each image anew
    distinct = [kind for kind in shared if len({row.keys[kind] for row in true}) == len(true)]
    if distinct:
        return distinct[0]
    if shared:
        return shared[0]
    has_no_names = all(set(row.keys) == {"order"} for row in (*found, *true))
    if has_no_names and len(found) == len(true):
        return "order"
    raise DataError(
        f"{predictions}: its sentences must be named like those of {truth}: by sent_id, or by "
        f"image_id and sent; got {sorted(found[0].keys) if found else 'no row'} and "
        f"{sorted(true[0].keys)} for {len(found)} and {len(true)} regions."
    )


def _by_key(path: Path, rows: Sequence[_Row], kind: str) -> dict[Key, _Row]:
    keys = [row.keys[kind] for row in rows]
    check_distinct(path, [" ".join(key) for key in keys], f"sentence (by {kind})")
    return dict(zip(keys, rows, strict=True))


def _first_sentences(rows: Sequence[_Row]) -> list[_Row]:
    """The first sentence of the last entry of each object, in order of the objects."""
    last = {row.object_name: row.place for row in rows}
    chosen: dict[str, _Row] = {}
    for row in rows:
        if row.place == last[row.object_name]:
            chosen.setdefault(row.object_name, row)
    return list(chosen.values())
