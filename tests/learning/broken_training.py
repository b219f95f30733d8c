"""Pretraining with one thing deliberately wrong: `python broken_training.py BUG <options>`."""

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from xdecoder.batch import Batch, ImageTextBatch, SegmentationBatch, SegmentTargets
from xdecoder.losses import matching
from xdecoder.tasks import MultiTask


def exchange_texts() -> None:
    """Every phrase and every caption belongs to another region or image of its batch."""

    def exchanged(batch: Batch) -> Batch:
        if isinstance(batch, ImageTextBatch):
            return replace(batch, captions=(*batch.captions[1:], batch.captions[0]))
        texts = [text for image in batch.phrases for text in image.phrases]
        moved = iter(texts[5:] + texts[:5])
        phrases = tuple(
            replace(image, phrases=tuple(next(moved) for _ in image.phrases))
            for image in batch.phrases
        )
        return replace(batch, phrases=phrases)

    _change_batches(exchanged)


def swap_axes() -> None:
    """Rows and columns of every true mask are exchanged."""

    def swapped(batch: Batch) -> Batch:
        if not isinstance(batch, SegmentationBatch):
            return batch
        size = batch.images.shape[2:]
        segments = tuple(
            SegmentTargets(masks=_transposed(s.masks, size), class_ids=s.class_ids)
            for s in batch.segments
        )
        phrases = tuple(replace(p, masks=_transposed(p.masks, size)) for p in batch.phrases)
        return replace(batch, segments=segments, phrases=phrases)

    _change_batches(swapped)


def match_at_random() -> None:
    """Targets are given to queries by chance."""
    generator = np.random.default_rng(0)

    def random_assignment(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = generator.permutation(cost.shape[0])[: cost.shape[1]]
        return rows, np.arange(len(rows))

    matching.linear_sum_assignment = random_assignment


def nothing() -> None:
    """Training as it is."""


def _transposed(masks: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return F.interpolate(masks.transpose(1, 2)[None].float(), tuple(size))[0] > 0.5


def _change_batches(change: Callable[[Batch], Batch]) -> None:
    original = MultiTask.forward

    def forward(self, batches, draws, counts=None):
        return original(self, [change(batch) for batch in batches], draws, counts)

    MultiTask.forward = forward


BUGS = {
    "nothing": nothing,
    "exchanged_texts": exchange_texts,
    "swapped_axes": swap_axes,
    "random_matching": match_at_random,
}

if __name__ == "__main__":
    from pipelines.pretrain import main

    BUGS[sys.argv[1]]()
    raise SystemExit(main(sys.argv[2:]))
