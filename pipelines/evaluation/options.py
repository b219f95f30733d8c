"""What a model sees of an image and how its answers are cut, as part of every protocol."""

from dataclasses import dataclass, replace

from pipelines.config import RunConfig
from pipelines.errors import ConfigError
from xdecoder.mask_former.config import MaskFormerConfig

# Source: MODEL.MASK_FORMER.TEST of the COCO configs of MaskFormer and Mask2Former
_CLOSED_OBJECT_THRESHOLD = 0.8


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Sizes, thresholds and limits of an evaluation.

    size_hw: images are fitted into it, keeping their shape; text_size_hw: the same for captions
    and retrieval. batch_size: images together. object_threshold, overlap_threshold: of panoptic
    segments; keeps_faint_pixels: MaskFormer's rule for them (`postprocess.panoptic`).
    minimum_score: of instances.
    retrieval_pool: recall is taken over disjoint sets of this many images.
    with_controls: also score with texts exchanged, which doubles the work for phrases.
    java: "auto", "never" or "need": METEOR, and Stanford's tokenizer.
    """

    size_hw: tuple[int, int]
    text_size_hw: tuple[int, int]
    batch_size: int = 8
    object_threshold: float = 0.4
    overlap_threshold: float = 0.8
    keeps_faint_pixels: bool = False
    minimum_score: float = 0.0
    max_instances: int = 100
    max_caption_tokens: int = 40
    templates: tuple[str, ...] = ("{}.",)
    retrieval_pool: int = 100
    with_controls: bool = True
    java: str = "never"
    max_images: int = 0

    def __post_init__(self) -> None:
        if min(*self.size_hw, *self.text_size_hw, self.batch_size, self.retrieval_pool) < 1:
            raise ConfigError(
                "evaluation: size_hw, text_size_hw, batch_size and retrieval_pool must be "
                f"positive; got {self.size_hw}, {self.text_size_hw}, {self.batch_size} and "
                f"{self.retrieval_pool}."
            )
        if not (0 <= self.object_threshold < 1 and 0 <= self.overlap_threshold < 1):
            raise ConfigError(
                "evaluation: object_threshold and overlap_threshold must be in [0, 1); got "
                f"{self.object_threshold} and {self.overlap_threshold}."
            )


def options_of_run(config: RunConfig) -> EvaluationOptions:
    """The options that fit what a run was trained on: its image sizes."""
    options = EvaluationOptions(
        size_hw=config.data.segmentation.size_hw,
        text_size_hw=config.data.image_text.size_hw,
        max_images=config.evaluation.max_images,
    )
    if not isinstance(config.model, MaskFormerConfig):
        return options
    return replace(
        options,
        object_threshold=_CLOSED_OBJECT_THRESHOLD,
        keeps_faint_pixels=config.model.decoder.kind == "detr",
    )
