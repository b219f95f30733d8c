"""Recall of images by captions and captions by images, exact and in chunks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

RANKS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class RetrievalScores:
    """Recall at each of `RANKS`, 0..1; NaN without an image.

    image_to_text: a caption of the image is among the first; text_to_image: the caption's image
    is; ties count against us; num_pools: how many disjoint sets the mean is taken over.
    """

    image_to_text: Mapping[int, float]
    text_to_image: Mapping[int, float]
    num_images: int
    num_captions: int
    num_pools: int

    def mean(self, rank: int) -> float:
        """Recall at a rank, averaged over both directions."""
        return (self.image_to_text[rank] + self.text_to_image[rank]) / 2


def score_retrieval(
    images: Float[np.ndarray, "i c"],
    texts: Float[np.ndarray, "t c"],
    image_of_text: Sequence[int],
    *,
    pool: int | None = None,
    chunk: int = 1024,
) -> RetrievalScores:
    """Recall by the dot product of unit vectors, `chunk` rows of similarities at a time.

    Products are summed in double precision and rounded to single, so that neither the size of a
    chunk nor the machine decides about ties, and equal vectors are equally similar.
    image_of_text: row of the image that each caption was written for. pool: images are cut into
    disjoint sets of this many, in order, and the recall is the mean over full sets (one set of
    all images where there are fewer).

    Raises:
        ValueError: a caption's image does not exist, or an image has no caption.
    """
    owners = _owners(len(images), len(texts), image_of_text)
    parts = []
    for start, stop in _pools(len(images), pool):
        mine = (owners >= start) & (owners < stop)
        parts.append(_pool_ranks(images[start:stop], texts[mine], owners[mine] - start, chunk))
    return _scores_of(parts)


def score_similarity(
    similarity: Float[np.ndarray, "i t"], image_of_text: Sequence[int]
) -> RetrievalScores:
    """Recall by given similarities, compared as they are.

    Raises:
        ValueError: a caption's image does not exist, or an image has no caption.
    """
    owners = _owners(len(similarity), similarity.shape[1], image_of_text)
    is_own = owners[None, :] == np.arange(len(similarity))[:, None]  # [I, T]
    return _scores_of([(_ranks(similarity, is_own), _ranks(similarity.T, is_own.T))])


def _owners(num_images: int, num_texts: int, image_of_text: Sequence[int]) -> Int[np.ndarray, " t"]:
    owners = np.asarray(image_of_text, dtype=np.int64)
    if len(owners) != num_texts or set(owners.tolist()) != set(range(num_images)):
        raise ValueError(
            f"score_retrieval: every one of the {num_images} images needs a caption and every "
            f"one of the {num_texts} captions an image; got {len(owners)} owners, "
            f"{len(set(owners.tolist()))} distinct."
        )
    return owners


def _scores_of(
    parts: Sequence[tuple[Int[np.ndarray, " i"], Int[np.ndarray, " t"]]],
) -> RetrievalScores:
    return RetrievalScores(
        image_to_text=_recalls([part[0] for part in parts]),
        text_to_image=_recalls([part[1] for part in parts]),
        num_images=sum(len(part[0]) for part in parts),
        num_captions=sum(len(part[1]) for part in parts),
        num_pools=len(parts),
    )


def _pools(count: int, pool: int | None) -> list[tuple[int, int]]:
    size = count if pool is None or pool > count else pool
    return [(start, start + size) for start in range(0, count - size + 1, size)] if count else []


def _pool_ranks(
    images: Float[np.ndarray, "i c"],
    texts: Float[np.ndarray, "t c"],
    owners: Int[np.ndarray, " t"],
    chunk: int,
) -> tuple[Int[np.ndarray, " i"], Int[np.ndarray, " t"]]:
    """How many wrong answers come before or level with the best right one, for each query."""
    images, texts = images.astype(np.float64), texts.astype(np.float64)
    places = np.arange(len(images))
    from_images = [
        _ranks(_similarity(images[rows], texts), owners[None, :] == places[rows, None])
        for rows in _slices(len(images), chunk)
    ]
    from_texts = [
        _ranks(_similarity(texts[rows], images), owners[rows, None] == places[None, :])
        for rows in _slices(len(texts), chunk)
    ]
    return np.concatenate(from_images), np.concatenate(from_texts)


def _similarity(
    queries: Float[np.ndarray, "q c"], answers: Float[np.ndarray, "a c"]
) -> Float[np.ndarray, "q a"]:
    return (queries @ answers.T).astype(np.float32)  # [Q, A]


def _slices(count: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, count, chunk)]


def _ranks(
    similarity: Float[np.ndarray, "q a"], is_right: Bool[np.ndarray, "q a"]
) -> Int[np.ndarray, " q"]:
    best = np.where(is_right, similarity, -np.inf).max(1, keepdims=True)  # [Q, 1]
    return ((similarity >= best) & ~is_right).sum(1)


def _recalls(ranks: list[Int[np.ndarray, " q"]]) -> dict[int, float]:
    if not ranks:
        return {rank: float("nan") for rank in RANKS}
    return {rank: float(np.mean([(part < rank).mean() for part in ranks])) for rank in RANKS}
