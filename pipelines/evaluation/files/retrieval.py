"""Recall of images and texts from a similarity matrix or from two sets of vectors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pipelines.errors import DataError
from pipelines.evaluation.files.reading import check_known, field_of, read_json, rows_of, shape_of
from pipelines.evaluation.files.result import FileScores
from pipelines.evaluation.retrieval import RANKS, RetrievalScores, score_retrieval, score_similarity

FORMAT = """retrieval: similarities or vectors against the pairs that belong together
  predictions.npy     similarity [images, texts], larger = more alike
  predictions.npz     `similarity`, or `images` [I, C] and `texts` [T, C] (compared by cosine in
                      double precision); optional `image_ids` [I] and `text_ids` [T]
  a folder            with images.npy and texts.npy
  truth.json          [0, 0, 0, 0, 0, 1, ...]: the image (row) of each text (column); or
                      {"image_of_text": [...]}; or {"texts_of_image": [[0, 1, 2, 3, 4], ...]};
                      or COCO captions, or Karpathy's dataset_coco.json (--split test)
  COCO captions: rows are `images`, columns `annotations` in the order of the file, or as image_ids
  and text_ids say (annotation ids). --texts-per-image 5 keeps the first five of each image.
  R@1, 5, 10 both ways; a wrong answer as similar as the best right one counts as before it."""
_IMAGE_NAMES = ("images", "image_embeddings", "image_features", "image")
_TEXT_NAMES = ("texts", "text_embeddings", "text_features", "text", "captions")
_SIMILARITY_NAMES = ("similarity", "similarities", "scores", "sims")


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """The image (a name) of each text (a name), both in the order of the truth."""

    image_ids: tuple[Any, ...]
    text_ids: tuple[Any, ...]
    image_of_text: tuple[Any, ...]


def score_retrieval_files(
    *,
    predictions: Path,
    truth: Path,
    split: str | None = None,
    texts_per_image: int | None = None,
) -> FileScores:
    """Recall at 1, 5 and 10, images to texts and texts to images.

    Raises:
        DataError: a file is missing or damaged, or predictions and truth do not fit together.
    """
    pairs = _first_texts(_pairs(truth, split), texts_per_image)
    arrays, files = _arrays(predictions)
    image_ids = _ids(predictions, arrays, "image_ids", pairs.image_ids)
    text_ids = _ids(predictions, arrays, "text_ids", pairs.text_ids)
    check_known(predictions, image_ids, pairs.image_ids, "image id", truth=truth)
    check_known(predictions, text_ids, pairs.text_ids, "text id", truth=truth)
    row_of = {ident: row for row, ident in enumerate(image_ids)}
    image_of = dict(zip(pairs.text_ids, pairs.image_of_text, strict=True))
    try:
        owners = [row_of[image_of[ident]] for ident in text_ids]
        scores = _scores(predictions, arrays, owners, len(image_ids))
    except KeyError as error:
        raise DataError(f"{predictions}: image {error} of a text must be in image_ids.") from error
    except ValueError as error:
        raise DataError(f"{predictions}: {error}") from error
    directions = (("i2t", scores.image_to_text), ("t2i", scores.text_to_image))
    return FileScores(
        protocol=f"retrieval/{scores.num_images}-images-{scores.num_captions}-texts/ties-against",
        values={f"{name}_r{rank}": row[rank] for name, row in directions for rank in RANKS},
        official={
            f"{name}@{rank}": row[rank]
            for name, row in (("TR", scores.image_to_text), ("IR", scores.text_to_image))
            for rank in RANKS
        },
        truth_files=(truth,),
        prediction_files=files,
        details={"num_images": scores.num_images, "num_texts": scores.num_captions},
    )


def _pairs(path: Path, split: str | None) -> _Pairs:
    document = read_json(path)
    if isinstance(document, Mapping) and "images" in document and "annotations" in document:
        return _coco_pairs(path, document)
    if isinstance(document, Mapping) and "images" in document:
        return _karpathy_pairs(path, document, split or "test")
    if isinstance(document, Mapping) and "texts_of_image" in document:
        lists = document["texts_of_image"]
        owner = {text: image for image, texts in enumerate(lists) for text in texts}
        owners: Any = [owner.get(text, -1) for text in range(len(owner))]
    else:
        owners = document.get("image_of_text") if isinstance(document, Mapping) else document
    is_list = isinstance(owners, list) and bool(owners)
    if not is_list or not all(isinstance(v, int) and v >= 0 for v in owners):
        raise DataError(
            f"{path}: must give the image (0, 1, ...) of each text as a list, image_of_text or "
            f"texts_of_image, or be a captions file; got {shape_of(document)}."
        )
    return _Pairs(
        image_ids=tuple(range(max(owners) + 1)),
        text_ids=tuple(range(len(owners))),
        image_of_text=tuple(owners),
    )


def _coco_pairs(path: Path, document: Mapping[str, Any]) -> _Pairs:
    images = [field_of(path, i, r, "id") for i, r in enumerate(rows_of(path, document, "images"))]
    rows = rows_of(path, document["annotations"])
    owners = [field_of(path, i, row, "image_id") for i, row in enumerate(rows)]
    return _Pairs(
        image_ids=tuple(image for image in images if image in set(owners)),
        text_ids=tuple(row.get("id", index) for index, row in enumerate(rows)),
        image_of_text=tuple(owners),
    )


def _karpathy_pairs(path: Path, document: Mapping[str, Any], split: str) -> _Pairs:
    rows = rows_of(path, document["images"])
    images = [row for row in rows if row.get("split") == split]
    if not images:
        raise DataError(
            f"{path}: must hold images of split {split!r}; it has "
            f"{sorted({str(row.get('split')) for row in rows})}. Choose with --split."
        )
    named = [(row.get("cocoid", row.get("imgid", i)), row) for i, row in enumerate(images)]
    texts = [
        (sentence.get("sentid", (name, place)), name)
        for name, row in named
        for place, sentence in enumerate(field_of(path, 0, row, "sentences"))
    ]
    return _Pairs(
        image_ids=tuple(name for name, _ in named),
        text_ids=tuple(text for text, _ in texts),
        image_of_text=tuple(name for _, name in texts),
    )


def _first_texts(pairs: _Pairs, count: int | None) -> _Pairs:
    if count is None:
        return pairs
    seen: dict[Any, int] = {}
    kept = []
    for text, image in zip(pairs.text_ids, pairs.image_of_text, strict=True):
        seen[image] = seen.get(image, 0) + 1
        if seen[image] <= count:
            kept.append((text, image))
    return _Pairs(
        image_ids=pairs.image_ids,
        text_ids=tuple(text for text, _ in kept),
        image_of_text=tuple(image for _, image in kept),
    )


def _arrays(path: Path) -> tuple[dict[str, np.ndarray], tuple[Path, ...]]:
    """Arrays by our names: similarity, or images and texts; and ids."""
    if path.is_dir():
        files = tuple(path / f"{name}.npy" for name in ("images", "texts"))
        return {file.stem: _load(file)[""] for file in files}, files
    loaded = _load(path)
    if "" in loaded:
        return {"similarity": loaded[""]}, (path,)
    arrays: dict[str, np.ndarray] = {
        name: loaded[name] for name in ("image_ids", "text_ids") if name in loaded
    }
    for name, aliases in (
        ("similarity", _SIMILARITY_NAMES),
        ("images", _IMAGE_NAMES),
        ("texts", _TEXT_NAMES),
    ):
        found = [loaded[alias] for alias in aliases if alias in loaded]
        if found:
            arrays[name] = found[0]
    if "similarity" not in arrays and not {"images", "texts"} <= set(arrays):
        raise DataError(
            f"{path}: must hold `similarity`, or `images` and `texts`; got {sorted(loaded)}."
        )
    return arrays, (path,)


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: must be an .npy or .npz file of numbers; got {error}.") from error


def _ids(
    path: Path, arrays: Mapping[str, np.ndarray], name: str, default: tuple[Any, ...]
) -> list[Any]:
    ids = arrays[name].tolist() if name in arrays else list(default)
    if len(set(ids)) != len(ids):
        raise DataError(f"{path}: {name} must be different; some occur twice.")
    return ids


def _scores(
    path: Path, arrays: Mapping[str, np.ndarray], owners: list[int], num_images: int
) -> RetrievalScores:
    if "similarity" in arrays:
        _check_shape(path, arrays["similarity"], (num_images, len(owners)), "similarity")
        return score_similarity(arrays["similarity"], owners)
    images, texts = arrays["images"], arrays["texts"]
    _check_shape(path, images, (num_images, None), "images")
    _check_shape(path, texts, (len(owners), images.shape[1]), "texts")
    return score_retrieval(_units(path, images), _units(path, texts), owners)


def _check_shape(path: Path, array: np.ndarray, shape: tuple[int, int | None], name: str) -> None:
    is_right = array.ndim == 2 and array.shape[0] == shape[0] and shape[1] in (None, array.shape[1])
    if not is_right or not np.isfinite(array).all():
        wanted = [size if size is not None else "C" for size in shape]
        raise DataError(
            f"{path}: {name} must be {wanted} finite numbers as the truth's pairs say; got "
            f"{list(array.shape)}. Rows are images, columns are texts."
        )


def _units(path: Path, vectors: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not lengths.all():
        raise DataError(f"{path}: vectors must not be zero; {int((lengths == 0).sum())} are.")
    return vectors.astype(np.float64) / lengths
