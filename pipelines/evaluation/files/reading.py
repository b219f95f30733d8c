"""Reading result files strictly: a mistake is named with its file and place, never guessed away."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from pycocotools import mask as rle_codec

from pipelines.data.coco import encode_rle
from pipelines.errors import DataError

# shown of a long list of offenders
NUM_SHOWN = 5


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    if not path.is_file():
        raise DataError(f"{path}: must be a JSON file; there is no such file.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: must be JSON; got {error}.") from error


def rows_of(path: Path, document: Any, *names: str) -> list[dict[str, Any]]:
    """The rows of a bare list, or of a list under one of `names` ("annotations" always).

    Raises:
        DataError: there is no such list, or a row is not an object.
    """
    rows = document
    if isinstance(document, Mapping):
        known = (*names, "annotations")
        rows = next((document[name] for name in known if name in document), None)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f"{path}: must be a list of objects, or hold one under "
            f"{' or '.join(map(repr, (*names, 'annotations')))}; got {shape_of(document)}."
        )
    return rows


def field_of(path: Path, index: int, row: Mapping[str, Any], *names: str) -> Any:
    """The first of `names` that a row has.

    Raises:
        DataError: the row has none of them.
    """
    for name in names:
        if name in row:
            return row[name]
    raise DataError(
        f"{path}: entry {index} must have {' or '.join(map(repr, names))}; it has {sorted(row)}."
    )


def check_distinct(path: Path, keys: Iterable[Any], what: str) -> None:
    """Refuse a key that occurs twice.

    Raises:
        DataError: it does; the first few are named.
    """
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: every {what} must occur once; {some(twice)} occur more often. "
            "Keep one of each."
        )


def check_covered(
    path: Path, predicted: Iterable[Any], wanted: Iterable[Any], what: str, *, truth: Path
) -> None:
    """Refuse predictions for things that the truth does not have, and things without prediction.

    Raises:
        DataError: there are some; the first few are named.
    """
    has, needs = set(predicted), set(wanted)
    if needs - has:
        raise DataError(
            f"{path}: must have a prediction for every {what} of {truth.name}; "
            f"{len(needs - has)} of {len(needs)} lack one: {some(needs - has)}."
        )
    check_known(path, has, needs, what, truth=truth)


def check_known(
    path: Path, predicted: Iterable[Any], known: Iterable[Any], what: str, *, truth: Path
) -> None:
    """Refuse predictions for things that the truth does not have.

    Raises:
        DataError: there are some; the first few are named.
    """
    odd = set(predicted) - set(known)
    if odd:
        raise DataError(
            f"{path}: every {what} must occur in {truth}; {len(odd)} do not: {some(odd)}. "
            "Are these the predictions for another data set or split?"
        )


def region_of(
    path: Path, name: object, segmentation: Any, size_hw: tuple[int, int] | None
) -> Bool[np.ndarray, "h w"]:
    """The region of RLE (compressed or not), polygons, or `null` for an empty region.

    size_hw: of the image; RLE knows its own, and must agree.

    Raises:
        DataError: the code is damaged, has another size, or polygons come without a size.
    """
    code = rle_of(path, name, segmentation, size_hw)
    try:
        return rle_codec.decode(code).astype(bool)  # [h, w]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: the mask of {name} cannot be decoded ({error}).") from error


def rle_of(
    path: Path, name: object, segmentation: Any, size_hw: tuple[int, int] | None
) -> dict[str, Any]:
    """Compressed RLE of what `region_of` reads, `counts` as text."""
    if segmentation is None or segmentation == []:
        return _empty(path, name, size_hw)
    try:
        code = _compressed(segmentation, size_hw)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        size = "" if size_hw else ", and polygons need the height and width of the image"
        raise DataError(
            f"{path}: the mask of {name} must be RLE {{'size', 'counts'}} or polygons{size}; "
            f"got {shape_of(segmentation)} ({error!r})."
        ) from error
    own = (int(code["size"][0]), int(code["size"][1]))
    if size_hw is not None and own != size_hw:
        raise DataError(
            f"{path}: the mask of {name} must be {size_hw[0]}x{size_hw[1]} like the image; got "
            f"{own[0]}x{own[1]}. Masks belong to the original size, height first."
        )
    return code


def read_labels(path: Path) -> np.ndarray:
    """The labels of a picture with one channel, 8 or 16 bit (or a palette's indices).

    Raises:
        DataError: the file is missing, damaged, or has colours.
    """
    try:
        with Image.open(path) as picture:
            labels = np.array(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: must be a readable picture of labels; got {error}.") from error
    if labels.ndim == 3 and all((labels[..., :1] == labels[..., 1:3]).ravel()):
        labels = labels[..., 0]
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise DataError(
            f"{path}: must hold one label a pixel (8 or 16 bit, one channel); got "
            f"{labels.dtype} {list(labels.shape)}. Colours must be mapped to labels first."
        )
    return labels.astype(np.int64)  # [h, w]


def some(values: Iterable[Any]) -> str:
    """The first few of some values, in order, as text."""
    ordered = sorted(values, key=lambda value: (str(type(value)), value))
    more = ", ..." if len(ordered) > NUM_SHOWN else ""
    return ", ".join(repr(value) for value in ordered[:NUM_SHOWN]) + more


def shape_of(value: Any) -> str:
    """What a JSON value is, in a few words."""
    if isinstance(value, Mapping):
        return f"an object with {sorted(map(str, value))[:NUM_SHOWN]}"
    if isinstance(value, list):
        return f"a list of {len(value)} {type(value[0]).__name__ if value else 'things'}"
    return repr(value)[:80]


def _empty(path: Path, name: object, size_hw: tuple[int, int] | None) -> dict[str, Any]:
    if size_hw is None:
        raise DataError(
            f"{path}: an empty mask needs the size of its image; {name} has none. "
            "Write RLE with 'size' and 'counts'."
        )
    code = rle_codec.encode(np.zeros(size_hw, dtype=np.uint8, order="F"))
    return {"size": list(size_hw), "counts": code["counts"].decode("ascii")}


def _compressed(segmentation: Any, size_hw: tuple[int, int] | None) -> dict[str, Any]:
    if isinstance(segmentation, list):
        if size_hw is None:
            raise ValueError("no size")
        return encode_rle(segmentation, size_hw)
    height, width = (int(value) for value in segmentation["size"])
    counts = segmentation["counts"]
    if isinstance(counts, list) and sum(counts) != height * width:
        raise ValueError(f"counts sum to {sum(counts)}, not {height} x {width}")
    return encode_rle(segmentation, (height, width))
