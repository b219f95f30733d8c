"""Naming objects whose attribute-noun pair never occurred in training."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from pipelines.evaluation.controls import shuffled_partners


@dataclass(frozen=True, kw_only=True)
class NamingScores:
    """Shares of objects named right, 0..1; NaN without an object.

    top1: the whole pair; top1_shuffled: the same answers against the names of other objects;
    attribute, noun: one half of the pair; chance: one over the number of candidates.
    """

    top1: float
    top1_shuffled: float
    attribute: float
    noun: float
    chance: float
    num_objects: int


@dataclass
class PairNaming:
    """Answers, as index into the candidates, for objects with a true pair."""

    candidates: Sequence[tuple[str, str]]
    truths: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def add(self, truth: tuple[str, str], answer: int) -> None:
        """Take one object: its (attribute, noun), and the place of the candidate chosen for it.

        Raises:
            ValueError: the true pair or the answer is no candidate.
        """
        if truth not in self.candidates or not 0 <= answer < len(self.candidates):
            raise ValueError(
                f"PairNaming: truth and answer must be among {len(self.candidates)} candidates; "
                f"got {truth} and {answer}."
            )
        self.truths.append(list(self.candidates).index(truth))
        self.answers.append(answer)

    def result(self) -> NamingScores:
        """Shares over all objects taken."""
        partners = shuffled_partners(self.truths)
        pairs = [
            (self.candidates[answer], self.candidates[truth])
            for answer, truth in zip(self.answers, self.truths, strict=True)
        ]
        return NamingScores(
            top1=_share([answer == truth for answer, truth in pairs]),
            top1_shuffled=_share(
                [
                    answer == self.truths[partner]
                    for answer, partner in zip(self.answers, partners, strict=True)
                ]
            ),
            attribute=_share([answer[0] == truth[0] for answer, truth in pairs]),
            noun=_share([answer[1] == truth[1] for answer, truth in pairs]),
            chance=1 / max(len(self.candidates), 1),
            num_objects=len(self.truths),
        )


def best_overlapping(
    regions: Bool[np.ndarray, "q h w"], truth: Bool[np.ndarray, "h w"]
) -> tuple[int, float]:
    """Index and IoU of the region that overlaps a true region best; the first of equals."""
    intersections = (regions & truth).sum((1, 2))
    unions = (regions | truth).sum((1, 2))
    overlaps = intersections / np.maximum(unions, 1)  # [Q]
    best = int(overlaps.argmax())
    return best, float(overlaps[best])


def _share(hits: Sequence[bool]) -> float:
    return float(np.mean(hits)) if len(hits) else float("nan")
