"""Weights and cut-offs of all losses."""

from dataclasses import dataclass, field, fields

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

    phrase_factor, class_factor: on `ce`, for phrases that somebody wrote and for class names.
    max_phrases: each image is asked 1 to this many of its phrases at a time. asks_classes: an
    image without phrases is asked for 1 to `max_phrases` of its classes instead, each of their
    segments under a drawn prompt. Source: X-Decoder, coco_panoptic_new_baseline_dataset_mapper.py
    and the criterion, GROUNDING.TEXT_WEIGHT and CLASS_WEIGHT.
    """

    ce: float = 0.4
    bce: float = 1.0
    dice: float = 1.0
    phrase_factor: float = 2.0
    class_factor: float = 0.5
    num_layers: int = 6
    max_phrases: int = 4
    asks_classes: bool = True


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
class NounWeights:
    """The contrastive term between latent queries and the nouns of a caption.

    The nouns that no class of the vocabulary names, and the whole caption, go to latent queries
    that no segment was given to; matched segments and their class names are contrasted with them.
    region_share: share of the direction from query to text. A weight of 0 leaves the term out.
    """

    weight: float = 1.0
    num_layers: int = 3
    region_share: float = 0.7


@dataclass(frozen=True, kw_only=True)
class LayeredWeight:
    """A weight at each of the last `num_layers` predictions."""

    weight: float = 2.0
    num_layers: int = 3


@dataclass(frozen=True, kw_only=True)
class ReleasedBehaviour:
    """What the released X-Decoder does otherwise than we hold right, each by a name.

    All are off in our recipes; `as_released` switches all of them on, for comparisons with it.
    draws_per_prediction: every prediction is matched and compared at points of its own, from the
    last decoder layer back. Ours share them, which costs a fraction.
    normalises_locally: sums are divided by counts of this process's own micro-batch (caption
    tokens plus one; phrases of all images alike), so that accumulation and the number of
    processes change the gradient.
    cuts_noun_gradient: no gradient reaches the latent queries that were given nouns.
    shows_padded_tokens: grounding queries see the zeros that fill shorter token lists.
    needs_phrases_everywhere: one image without a phrase takes the phrases of all images of the
    process out of the loss.
    keeps_local_gradient: the gradient of contrastive terms is not multiplied by the number of
    processes that average it away.
    tells_equal_captions_apart: an image's caption is wrong for another image with an equal one.
    Source: specification of microsoft/X-Decoder v2.0: modeling/modules/{criterion,matcher}.py,
    modeling/language/loss.py, modeling/architectures/xdecoder_model.py.
    """

    draws_per_prediction: bool = False
    normalises_locally: bool = False
    cuts_noun_gradient: bool = False
    shows_padded_tokens: bool = False
    needs_phrases_everywhere: bool = False
    keeps_local_gradient: bool = False
    tells_equal_captions_apart: bool = False


def as_released() -> ReleasedBehaviour:
    """All switches on."""
    return ReleasedBehaviour(**{field_.name: True for field_ in fields(ReleasedBehaviour)})


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """All weights; the defaults are those of X-Decoder's released training.

    region_text: ours, not in the paper; retrieval: contrast between global queries and captions;
    retrieval_alignment: contrast between latent queries and caption tokens, relative to it;
    retrieval_backbone: contrast between pooled backbone maps and captions; scale_limit: largest
    factor on a cosine; templates: one is drawn per class and step.
    """

    matching: MatchingCosts = field(default_factory=MatchingCosts)
    points: PointSampling = field(default_factory=PointSampling)
    mask: MaskWeights = field(default_factory=MaskWeights)
    grounding: GroundingWeights = field(default_factory=GroundingWeights)
    region_text: RegionTextWeights = field(default_factory=RegionTextWeights)
    nouns: NounWeights = field(default_factory=NounWeights)
    captioning: LayeredWeight = LayeredWeight()
    retrieval: LayeredWeight = LayeredWeight()
    retrieval_alignment: float = 0.5
    retrieval_backbone: float = 8.0
    scale_limit: float = 100.0
    templates: tuple[str, ...] = TEMPLATES
    released: ReleasedBehaviour = field(default_factory=ReleasedBehaviour)
