"""Questions to a model, and how a model that was trained in some way wants to be asked.

    model = XDecoder.from_pretrained("runs/demo")
    answer = model.predict(Image.open("photo.jpg"), Referring(phrases=("the red circle",)))

A question knows what to ask and how to read the answer; a model knows neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from xdecoder.batch import Vocabulary
from xdecoder.images import ImageArray, ImageFit
from xdecoder.postprocess import ResizeMode
from xdecoder.text.prompts import PLAIN_TEMPLATES, TEMPLATES

# of models with a fixed list of classes. Source: facebookresearch/Mask2Former, configs/coco
CLOSED_OBJECT_THRESHOLD = 0.8
# of OpenSeeD, before scores are sharpened. Source: MODEL.DECODER.TEST of its configs
SIMILARITY_THRESHOLD = 0.25

ModelT = TypeVar("ModelT", contravariant=True)
AnswerT = TypeVar("AnswerT", covariant=True)


class Question(Protocol[ModelT, AnswerT]):
    """What is asked about one image."""

    def ask(self, model: ModelT, image: ImageArray) -> AnswerT:
        """The answer, at the size of the image: RGB in 0..255."""
        ...


# which questions of ours each family answers
_SEGMENTATION = ("Panoptic", "Semantic", "Instance", "Detection")
_PHRASES = ("Referring", "ReferringDetection", "Grounding")
_TEXTS = ("Captioning", "ReferringCaptioning", "Retrieval", "RegionRetrieval", "Editing")
ANSWERED: Mapping[str, tuple[str, ...]] = {
    "XDecoder": (*_SEGMENTATION, *_PHRASES, *_TEXTS),
    "MaskFormer": _SEGMENTATION,
    "OpenSeeD": (*_SEGMENTATION, *_PHRASES, "MasksOfBoxes"),
}


def check_answered(model: object, question: object) -> None:
    """Nothing, where the family of the model answers the question; one's own may ask anything.

    Raises: TypeError for a question of ours that only other families answer.
    """
    family, kind = type(model).__name__, type(question).__name__
    answering = [name for name, kinds in ANSWERED.items() if kind in kinds]
    is_ours = type(question).__module__.partition(".")[0] == __name__.partition(".")[0]
    if is_ours and answering and family in ANSWERED and family not in answering:
        raise TypeError(
            f"{kind}: must be asked of {' or '.join(answering)}; got a model of the family "
            f"{family}, which answers {', '.join(ANSWERED[family])}."
        )


class Search(Protocol[ModelT, AnswerT]):
    """What is asked about several images together."""

    def ask(self, model: ModelT, image: Sequence[ImageArray]) -> AnswerT:
        """The answer about all of them."""
        ...


@dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """How a model wants to be asked; part of its weights' meaning, and saved beside them.

    segmentation, referring, text: the size of the image for segments, for phrases, and for
    captions and retrieval. templates: prompts around class names.
    vocabulary: the names it was trained with, for questions that name none.
    mask_resize: how masks grow to the size of the image. has_global_query: the global query makes
    segments as well. asks_phrases_together: the phrases about an image see each other.
    object_threshold, overlap_threshold, keeps_faint_pixels: of panoptic segments, as in
    `postprocess.panoptic`.
    max_caption_tokens: in a caption. ends_at_full_stop: what follows a caption's first full stop
    is cut off.
    """

    segmentation: ImageFit = field(default_factory=ImageFit)
    referring: ImageFit = field(default_factory=ImageFit)
    text: ImageFit = field(default_factory=ImageFit)
    templates: tuple[str, ...] = PLAIN_TEMPLATES
    vocabulary: Vocabulary | None = None
    mask_resize: ResizeMode = "bilinear"
    has_global_query: bool = False
    asks_phrases_together: bool = False
    object_threshold: float = 0.4
    overlap_threshold: float = 0.8
    keeps_faint_pixels: bool = False
    max_caption_tokens: int = 40
    ends_at_full_stop: bool = False


def released_prediction() -> PredictionConfig:
    """How the released X-Decoder was evaluated.

    Source: microsoft/X-Decoder, configs/xdecoder/*.yaml and the evaluation in
    modeling/architectures/xdecoder_model.py.
    """
    return PredictionConfig(
        segmentation=ImageFit(kind="shorter_side", size_hw=(800, 1333)),
        referring=ImageFit(kind="shorter_side", size_hw=(512, 1024)),
        text=ImageFit(kind="exact", size_hw=(224, 224)),
        templates=TEMPLATES,
        mask_resize="bicubic_antialias",
        has_global_query=True,
        asks_phrases_together=True,
        object_threshold=0.8,
        max_caption_tokens=50,
        ends_at_full_stop=True,
    )


def mask_former_prediction(*, keeps_faint_pixels: bool) -> PredictionConfig:
    """How MaskFormer and Mask2Former were evaluated on COCO. Source: their configs/coco/*.yaml."""
    return PredictionConfig(
        segmentation=ImageFit(kind="shorter_side", size_hw=(800, 1333)),
        object_threshold=CLOSED_OBJECT_THRESHOLD,
        keeps_faint_pixels=keeps_faint_pixels,
    )


def openseed_prediction() -> PredictionConfig:
    """How OpenSeeD was evaluated on COCO: any name's similarity above 0.25 makes a segment.

    Source: IDEA-Research/OpenSeeD, configs/openseed/*.yaml and openseed_model.py.
    """
    return PredictionConfig(
        segmentation=ImageFit(kind="shorter_side", size_hw=(800, 1333)),
        referring=ImageFit(kind="shorter_side", size_hw=(800, 1333)),
        templates=TEMPLATES,
        mask_resize="bicubic_antialias",
        object_threshold=SIMILARITY_THRESHOLD,
    )
