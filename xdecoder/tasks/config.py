"""Weights and cut-offs of all losses."""

from dataclasses import dataclass, field

from xdecoder.losses.matching import MatchingCosts
from xdecoder.losses.points import PointSampling
from xdecoder.text.prompts import TEMPLATES


@dataclass(frozen=True, kw_only=True)
class MaskWeights:
    """Weights of the terms of segments, at every prediction.

    background: weight of the no-object class inside the cross-entropy.
    """

    ce: float = 2.0
    bce: float = 5.0
    dice: float = 5.0
    background: float = 0.1


@dataclass(frozen=True, kw_only=True)
class GroundingWeights:
    """Weights of the terms of phrases, at the last `num_layers` predictions.

    max_phrases: each image is asked 1 to this many of its phrases at a time.
    """

    ce: float = 0.8
    bce: float = 1.0
    dice: float = 1.0
    num_layers: int = 6
    max_phrases: int = 4


@dataclass(frozen=True, kw_only=True)
class RegionTextWeights:
    """The contrastive term between segments and the phrases that describe them.

    minimum_iou: how much of a segment a phrase's mask must cover to describe it;
    region_share: share of the direction from region to text.
    """

    weight: float = 1.0
    num_layers: int = 3
    minimum_iou: float = 0.5
    region_share: float = 0.7


@dataclass(frozen=True, kw_only=True)
class LayeredWeight:
    """A weight at each of the last `num_layers` predictions."""

    weight: float = 2.0
    num_layers: int = 3


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """All weights; the defaults are those of X-Decoder's released training.

    retrieval: contrast between global queries and captions; retrieval_alignment: contrast between
    latent queries and caption tokens, relative to it; retrieval_backbone: contrast between pooled
    backbone maps and captions; scale_limit: largest factor on a cosine;
    templates: one is drawn per class and step.
    """

    matching: MatchingCosts = field(default_factory=MatchingCosts)
    points: PointSampling = field(default_factory=PointSampling)
    mask: MaskWeights = field(default_factory=MaskWeights)
    grounding: GroundingWeights = field(default_factory=GroundingWeights)
    region_text: RegionTextWeights = field(default_factory=RegionTextWeights)
    captioning: LayeredWeight = LayeredWeight()
    retrieval: LayeredWeight = LayeredWeight()
    retrieval_alignment: float = 0.5
    retrieval_backbone: float = 8.0
    scale_limit: float = 100.0
    templates: tuple[str, ...] = TEMPLATES
