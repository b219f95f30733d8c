"""What a model sees of an image and how its answers are cut, as part of every protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipelines.config import RunConfig
from pipelines.errors import ConfigError
from pipelines.evaluation.images import fitted_size_hw
from pipelines.evaluation.protocols import REFER_PER_SENTENCE, REFER_PROTOCOLS, REFER_XDECODER
from pipelines.prediction import prediction_of_run
from xdecoder.postprocess import ResizeMode
from xdecoder.prediction import PredictionConfig

BoxScore = Literal["name", "name-and-mask"]
# by family: how the released programs ask and count, where that changes a number
# Source: microsoft/X-Decoder v2.0; IDEA-Research/OpenSeeD, openseed_model.py
AS_RELEASED: Mapping[str, Mapping[str, Any]] = {
    "XDecoder": {
        "refer_protocol": REFER_XDECODER,
        "has_global_query": True,
        "resize": "bicubic_antialias",
        "max_caption_tokens": 50,
        "batch_size": 1,
    },
    "OpenSeeD": {"resize": "bicubic_antialias", "box_score": "name-and-mask", "batch_size": 1},
}


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Sizes, thresholds and limits of an evaluation.

    size_hw: images are fitted into it, keeping their shape; text_size_hw: the same for captions
    and retrieval, where is_squashed does not keep it. shorter_px, longest_px: instead of size_hw,
    the side that the shorter one gets and the limit of the longer one (0 = no limit).
    batch_size: images together. object_threshold, overlap_threshold: of panoptic
    segments; keeps_faint_pixels: MaskFormer's rule for them (`postprocess.panoptic`).
    minimum_score: of instances.
    retrieval_pool: recall is taken over disjoint sets of this many images, 0 = all together.
    with_controls: also score with texts exchanged, which doubles the work for phrases.
    texts_per_image: the first captions of each image that count for recall, 0 = all.
    refer_protocol: one of `protocols.REFER_PROTOCOLS`. vocabulary: the class of "nothing" is a text
    of its own, or the last class of the list, as some published numbers have it.
    has_global_query, resize: how the released X-Decoder segments (`tasks.segmentation.predict`).
    box_score: boxes of an OpenSeeD are ranked by how well their name fits, or, as the released one
    has it, by that times how sure their mask is of itself.
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
    shorter_px: int = 0
    longest_px: int = 0
    is_squashed: bool = False
    texts_per_image: int = 0
    refer_protocol: str = REFER_PER_SENTENCE
    vocabulary: Literal["with-background", "without-background"] = "with-background"
    has_global_query: bool = False
    resize: ResizeMode = "bilinear"
    box_score: BoxScore = "name"

    def __post_init__(self) -> None:
        if min(*self.size_hw, *self.text_size_hw, self.batch_size) < 1:
            raise ConfigError(
                "evaluation: size_hw, text_size_hw and batch_size must be positive; got "
                f"{self.size_hw}, {self.text_size_hw} and {self.batch_size}."
            )
        if self.refer_protocol not in REFER_PROTOCOLS:
            raise ConfigError(
                f"evaluation: refer_protocol must be one of {list(REFER_PROTOCOLS)}; got "
                f"{self.refer_protocol!r}."
            )
        if not (0 <= self.object_threshold < 1 and 0 <= self.overlap_threshold < 1):
            raise ConfigError(
                "evaluation: object_threshold and overlap_threshold must be in [0, 1); got "
                f"{self.object_threshold} and {self.overlap_threshold}."
            )

    def input_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """The size at which a model sees an image of this size."""
        if not self.shorter_px:
            return fitted_size_hw(image_hw, self.size_hw)
        shorter, longer = min(image_hw), max(image_hw)
        scale = self.shorter_px / shorter
        if self.longest_px and scale * longer > self.longest_px:
            scale = self.longest_px / longer
        return round(image_hw[0] * scale), round(image_hw[1] * scale)

    def text_input_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """The same for captions and retrieval."""
        return (
            self.text_size_hw if self.is_squashed else fitted_size_hw(image_hw, self.text_size_hw)
        )

    @property
    def seen_as(self) -> str:
        """The size rule of images, as protocols name it."""
        if not self.shorter_px:
            return f"fit-{self.size_hw[0]}x{self.size_hw[1]}"
        limit = f"-longest-{self.longest_px}" if self.longest_px else ""
        return f"shorter-{self.shorter_px}{limit}"

    @property
    def read_as(self) -> str:
        """The size rule of images that are described, as protocols name it."""
        rule = "squash" if self.is_squashed else "fit"
        return f"{rule}-{self.text_size_hw[0]}x{self.text_size_hw[1]}"


def options_of_run(config: RunConfig) -> EvaluationOptions:
    """The options that fit what a run was trained on: its image sizes and templates."""
    own = options_of_prediction(prediction_of_run(config))
    return replace(own, max_images=config.evaluation.max_images)


def options_of_prediction(own: PredictionConfig) -> EvaluationOptions:
    """The options that ask a model as it wants to be asked."""
    seen, read = own.segmentation, own.text
    keeps_size = seen.kind == "shorter_side"
    return EvaluationOptions(
        size_hw=seen.size_hw,
        shorter_px=min(seen.size_hw) if keeps_size else 0,
        longest_px=max(seen.size_hw) if keeps_size else 0,
        text_size_hw=read.size_hw,
        is_squashed=read.kind == "exact",
        object_threshold=own.object_threshold,
        overlap_threshold=own.overlap_threshold,
        keeps_faint_pixels=own.keeps_faint_pixels,
        max_caption_tokens=own.max_caption_tokens,
        templates=own.templates,
        has_global_query=own.has_global_query,
        resize=own.mask_resize,
    )
