"""The data sets that `python -m pipelines.prepare` knows; one file for each family."""

from pipelines.data.sources import (
    ade20k,
    coco,
    indoor,
    karpathy,
    objects365,
    pairs,
    pascal,
    refer,
    street,
    visual_genome,
    vqa,
)
from pipelines.data.sources.base import NeededFile, Request, Source
from pipelines.data.sources.evaluation import EVALUATION_SETS, EvaluationSet

SOURCES: tuple[Source, ...] = (
    *coco.SOURCES,
    *refer.SOURCES,
    *karpathy.SOURCES,
    *visual_genome.SOURCES,
    *pairs.SOURCES,
    *ade20k.SOURCES,
    *street.SOURCES,
    *indoor.SOURCES,
    *pascal.SOURCES,
    *objects365.SOURCES,
    *vqa.SOURCES,
)

__all__ = [
    "EVALUATION_SETS",
    "SOURCES",
    "EvaluationSet",
    "NeededFile",
    "Request",
    "Source",
    "source_named",
]


def source_named(name: str) -> Source:
    """The source of this name; `KeyError` if there is none."""
    return {source.name: source for source in SOURCES}[name]
