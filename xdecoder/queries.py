"""Which rows the decoder runs, in which order, and who sees whom in self-attention.

    row      0 ............ Q-1   Q       ...            ...        ...
             latents              global  grounding      caption    phrase tokens
             |--- objects ---------------|
             |--- pixel rows: they have masks -----------|
             |--- cross-attend to the image ------------------------|

Grounding rows are copies of the latent queries that may look at phrase tokens. Phrase tokens take
part in self-attention only.
"""

import enum
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class RowGroup(enum.Enum):
    """The five kinds of rows."""

    LATENT = "latent"
    GLOBAL = "global"
    GROUNDING = "grounding"
    CAPTION = "caption"
    PHRASE = "phrase"


class Visibility(enum.Enum):
    """What a row of one group sees of another group."""

    NOTHING = "nothing"
    ALL = "all"
    UP_TO_ITSELF = "up to itself"


_NO, _ALL, _CAUSAL = Visibility.NOTHING, Visibility.ALL, Visibility.UP_TO_ITSELF

# Keys in the order of RowGroup: latent, global, grounding, caption, phrase. Latents never see
# text, so segmentation gives the same numbers with and without the groups below them.
# Source: the self-attention masks of microsoft/X-Decoder, modeling/interface/xdecoder.py.
VISIBILITY: dict[RowGroup, tuple[Visibility, Visibility, Visibility, Visibility, Visibility]] = {
    RowGroup.LATENT: (_ALL, _NO, _NO, _NO, _NO),
    RowGroup.GLOBAL: (_NO, _ALL, _NO, _NO, _NO),
    RowGroup.GROUNDING: (_NO, _NO, _ALL, _NO, _ALL),
    RowGroup.CAPTION: (_ALL, _ALL, _NO, _CAUSAL, _NO),
    RowGroup.PHRASE: (_NO, _NO, _ALL, _NO, _ALL),
}


@dataclass(frozen=True, kw_only=True)
class QueryLayout:
    """Named slices of the decoder's rows; a group that is not there is an empty slice.

    has_global_query: off for decoders that only segment.
    """

    num_latents: int
    num_grounding: int = 0
    num_phrase_tokens: int = 0
    num_caption: int = 0
    has_global_query: bool = True

    def __post_init__(self) -> None:
        counts = (self.num_grounding, self.num_phrase_tokens, self.num_caption)
        if self.num_latents < 1 or min(counts) < 0:
            raise ValueError(
                "QueryLayout: num_latents must be at least 1 and the other counts at least 0; "
                f"got num_latents={self.num_latents}, num_grounding={self.num_grounding}, "
                f"num_phrase_tokens={self.num_phrase_tokens}, num_caption={self.num_caption}."
            )

    @property
    def latents(self) -> slice:
        return slice(0, self.num_latents)

    @property
    def global_query(self) -> slice:
        return slice(self.num_latents, self.num_latents + int(self.has_global_query))

    @property
    def objects(self) -> slice:
        """Latents and the global query, which X-Decoder segments with as well."""
        return slice(0, self.global_query.stop)

    @property
    def grounding(self) -> slice:
        return slice(self.objects.stop, self.objects.stop + self.num_grounding)

    @property
    def pixel_rows(self) -> slice:
        """Rows that have masks: latents, the global query and grounding rows."""
        return slice(0, self.grounding.stop)

    @property
    def caption(self) -> slice:
        return slice(self.grounding.stop, self.grounding.stop + self.num_caption)

    @property
    def cross_rows(self) -> slice:
        """Rows that look at the image: all but phrase tokens."""
        return slice(0, self.caption.stop)

    @property
    def phrase_tokens(self) -> slice:
        return slice(self.caption.stop, self.caption.stop + self.num_phrase_tokens)

    @property
    def num_rows(self) -> int:
        return self.phrase_tokens.stop

    def rows(self, group: RowGroup) -> slice:
        """The slice of one group."""
        slices = {
            RowGroup.LATENT: self.latents,
            RowGroup.GLOBAL: self.global_query,
            RowGroup.GROUNDING: self.grounding,
            RowGroup.CAPTION: self.caption,
            RowGroup.PHRASE: self.phrase_tokens,
        }
        return slices[group]

    def may_attend(self, device: torch.device | None = None) -> Bool[Tensor, "r r"]:
        """Self-attention permissions, [row that looks, row that is looked at]."""
        table = torch.zeros(self.num_rows, self.num_rows, dtype=torch.bool)
        for group, cells in VISIBILITY.items():
            for other, visibility in zip(RowGroup, cells, strict=True):
                block = table[self.rows(group), self.rows(other)]
                block.copy_(_block(visibility, block))
        return table.to(device)


def _block(visibility: Visibility, block: Tensor) -> Tensor:
    if visibility is Visibility.UP_TO_ITSELF:
        return torch.ones_like(block).tril()
    return torch.full_like(block, visibility is Visibility.ALL)


@dataclass(frozen=True, kw_only=True)
class TextQueries:
    """Text tokens that enter the decoder, as `TextFeatures.tokens` (projected, un-normalised).

    For grounding, row b holds the tokens of all phrases of image b one after another, padded to
    the longest; for captions, the tokens of the caption of image b, start token first.
    content: what caption rows hold instead of their tokens, which then are their whole positions.
    """

    tokens: Float[Tensor, "b t c"]
    is_padding: Bool[Tensor, "b t"]
    content: Float[Tensor, "b t c"] | None = None

    def __post_init__(self) -> None:
        if self.tokens.dim() != 3 or self.is_padding.shape != self.tokens.shape[:2]:
            raise ValueError(
                "TextQueries: tokens must be [B, T, C] and is_padding [B, T]; got "
                f"{list(self.tokens.shape)} and {list(self.is_padding.shape)}."
            )


@dataclass(frozen=True, kw_only=True)
class QuerySet:
    """What a task adds to the latent and global queries, which always run.

    caption_may_look: the pixels of the padded images that caption rows may look at, everywhere
    without it or where an image has no such pixel. At any size that covers the padded image.
    """

    grounding: TextQueries | None = None
    caption: TextQueries | None = None
    caption_may_look: Bool[Tensor, "b h w"] | None = None

    def layout(self, num_latents: int) -> QueryLayout:
        """The rows that this set makes for a decoder with `num_latents` latent queries."""
        return QueryLayout(
            num_latents=num_latents,
            num_grounding=num_latents if self.grounding is not None else 0,
            num_phrase_tokens=self.grounding.tokens.shape[1] if self.grounding is not None else 0,
            num_caption=self.caption.tokens.shape[1] if self.caption is not None else 0,
        )
