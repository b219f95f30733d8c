"""What the data layer hands to a task: images, and what is known about them."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The names that a segmentation batch is labelled with; a class id is an index into `names`."""

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.is_thing):
            raise ValueError(
                f"Vocabulary: is_thing must have one entry per name ({len(self.names)}); "
                f"got {len(self.is_thing)}."
            )

    @classmethod
    def of(cls, *names: str, stuff: Sequence[str] = ()) -> "Vocabulary":
        """Names of things, but for those that `stuff` repeats."""
        return cls(names=names, is_thing=tuple(name not in stuff for name in names))


@dataclass(frozen=True, kw_only=True)
class SegmentTargets:
    """The annotated segments of one image, at the padded size of its batch."""

    masks: Bool[Tensor, "m h w"]
    class_ids: Int[Tensor, " m"]


@dataclass(frozen=True, kw_only=True)
class PhraseTargets:
    """Phrases about one image, each with the region that it refers to."""

    phrases: tuple[str, ...]
    masks: Bool[Tensor, "p h w"]


@dataclass(frozen=True, kw_only=True)
class SegmentationBatch:
    """Images with segments and phrases; RGB 0..255, padded right and bottom with zeros.

    captions: those of each image, any number of them; empty where no image has any.
    """

    keys: tuple[str, ...]
    images: Float[Tensor, "b 3 h w"]
    valid_sizes_hw: tuple[tuple[int, int], ...]
    vocabulary: Vocabulary
    segments: tuple[SegmentTargets, ...]
    phrases: tuple[PhraseTargets, ...]
    captions: tuple[tuple[str, ...], ...] = ()
    task: str = "segmentation"


@dataclass(frozen=True, kw_only=True)
class BoxTargets:
    """The annotated boxes of one image, in pixels of its batch; ends lie past the last pixel."""

    boxes_xyxy_px: Float[Tensor, "m 4"]
    class_ids: Int[Tensor, " m"]


@dataclass(frozen=True, kw_only=True)
class DetectionBatch:
    """Images with boxes but no masks; RGB 0..255, padded right and bottom with zeros."""

    keys: tuple[str, ...]
    images: Float[Tensor, "b 3 h w"]
    valid_sizes_hw: tuple[tuple[int, int], ...]
    vocabulary: Vocabulary
    boxes: tuple[BoxTargets, ...]
    task: str = "detection"


@dataclass(frozen=True, kw_only=True)
class ImageTextBatch:
    """Images with one caption each; RGB 0..255, padded right and bottom with zeros."""

    keys: tuple[str, ...]
    images: Float[Tensor, "b 3 h w"]
    valid_sizes_hw: tuple[tuple[int, int], ...]
    captions: tuple[str, ...]
    task: str = "image_text"


Batch = SegmentationBatch | DetectionBatch | ImageTextBatch
