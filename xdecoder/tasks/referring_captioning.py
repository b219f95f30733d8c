"""A caption about the region that a phrase means."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from xdecoder.images import ImageArray, ImageFit
from xdecoder.model import XDecoder
from xdecoder.outputs import ImageFeatures
from xdecoder.tasks import referring
from xdecoder.tasks.captioning import Caption, finished, generate


class RegionCaption(NamedTuple):
    """The region of the phrase, and the caption; None where the phrase means no pixel."""

    region: Bool[Tensor, "h w"]
    caption: Caption | None


@dataclass(frozen=True, kw_only=True)
class ReferringCaptioning:
    """What can be said about the thing that a phrase names.

    The phrase finds the region; then the caption looks at that region only. The released program
    does not get there: its demo multiplies the mask with zero, its other caller passes logits.
    Fields other than the phrase are as in `Captioning`; fit: of both looks at the image.
    """

    phrase: str
    num_beams: int = 1
    max_tokens: int | None = None
    fit: ImageFit | None = None

    def ask(self, model: XDecoder, image: ImageArray) -> RegionCaption:
        own, size_hw = model.prediction, (image.shape[0], image.shape[1])
        logits = referring.predict(
            model,
            (self.fit or own.referring).pixels(image),
            [self.phrase],
            size_hw,
            resize=own.mask_resize,
        )
        region = logits[0] > 0
        if not region.any():
            return RegionCaption(region, None)
        limit = own.max_caption_tokens if self.max_tokens is None else self.max_tokens
        pixels = (self.fit or own.text).pixels(image)
        features = model.encode_images(pixels[None].to(model.token_table.device))
        found = generate(
            model,
            features,
            max_tokens=limit,
            num_beams=self.num_beams,
            may_look=on_canvas(logits, (pixels.shape[1], pixels.shape[2]), features),
        )
        return RegionCaption(region, finished(found[0], ends_at_full_stop=own.ends_at_full_stop))


def on_canvas(
    logits: Float[Tensor, "1 h w"], image_hw: tuple[int, int], features: ImageFeatures
) -> Bool[Tensor, "1 h4 w4"]:
    """Where a mask is positive, on the padded image at the stride of the mask features.

    A small region keeps at least the place of its largest logit, so that it never becomes free.
    """
    height, width = features.mask_features.shape[2:]
    size_hw = (-(-image_hw[0] // 4), -(-image_hw[1] // 4))
    small = F.interpolate(logits[None], size=size_hw, mode="bilinear", antialias=True)[0, 0]
    is_inside = (small > 0) | (small == small.max())
    return F.pad(is_inside, (0, width - size_hw[1], 0, height - size_hw[0]))[None]
