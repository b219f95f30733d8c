"""Names to prompts to unit class vectors."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn

from xdecoder.heads import unit
from xdecoder.outputs import TextFeatures

_PHOTO = "a photo of a {}."
_OPENAI = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)

PLAIN_TEMPLATES: tuple[str, ...] = ("{}.",)
# the bare name, a photo of it, then OpenAI's other 79 in their order.
# Source: microsoft/X-Decoder, utils/prompt_engineering.py
TEMPLATES: tuple[str, ...] = (
    *PLAIN_TEMPLATES,
    _PHOTO,
    *(template for template in _OPENAI if template != _PHOTO),
)
BACKGROUND = "background"
# of COCO panoptic's class names
NAME_SUFFIXES = ("-other", "-merged", "-stuff")
# prompts encoded at once: bounds the memory of large vocabularies
PROMPTS_PER_CALL = 1024


@runtime_checkable
class EncodesText(Protocol):
    """What this module needs of a model: a tokenizer and a text encoder."""

    @property
    def text_encoder(self) -> nn.Module: ...

    def tokenizer(self, texts: Sequence[str]) -> Int[Tensor, "n t"]: ...

    def encode_text(self, token_ids: Int[Tensor, "n t"]) -> TextFeatures: ...


def plain_name(name: str) -> str:
    """A class name as people say it: `wall-other-merged` is `wall`."""
    for suffix in NAME_SUFFIXES:
        name = name.replace(suffix, "")
    return name


def prompt(name: str, template: str = "{}.") -> str:
    """The name in a template, as evaluation writes it."""
    return template.format(plain_name(name))


def training_prompt(name: str, template: str) -> str:
    """The name in a template, as training writes it: no commas, `+` is a space."""
    return template.format(plain_name(name).replace(",", "").replace("+", " "))


def class_embeddings(
    model: EncodesText,
    names: Sequence[str],
    *,
    templates: Sequence[str] = PLAIN_TEMPLATES,
) -> Float[Tensor, "k c"]:
    """Unit vectors of K names: the direction of the mean of a name's unit prompt vectors.

    Differentiable where gradients are on. Source: microsoft/X-Decoder, vlpencoder.py.
    Raises: ValueError without names or templates.
    """
    if not names or not templates:
        raise ValueError(
            "class_embeddings: at least one name and one template are needed; got "
            f"{len(names)} names and {len(templates)} templates."
        )
    prompts = [prompt(name, template) for name in names for template in templates]
    vectors = sentence_embeddings(model, prompts)  # [K*T, C]
    mean = vectors.unflatten(0, (len(names), len(templates))).mean(1)  # [K, C]
    return mean / mean.norm(dim=-1, keepdim=True)


def sentence_embeddings(model: EncodesText, texts: Sequence[str]) -> Float[Tensor, "n c"]:
    """Unit vectors of N texts; equal texts are encoded once."""
    distinct = list(dict.fromkeys(texts))
    parts = []
    for start in range(0, len(distinct), PROMPTS_PER_CALL):
        ids = model.tokenizer(distinct[start : start + PROMPTS_PER_CALL])
        parts.append(unit(model.encode_text(ids).sentence))
    vectors = torch.cat(parts)
    if len(distinct) == len(texts):
        return vectors
    place = {text: i for i, text in enumerate(distinct)}
    return vectors[torch.tensor([place[text] for text in texts], device=vectors.device)]


class ClassEmbeddingCache:
    """Class vectors that are kept until the text encoder's weights change.

    Kept vectors carry no gradient. Weights are recognised by their bits, because optimizers that
    write through flat buffers leave no other trace.
    """

    def __init__(self) -> None:
        self._weights: tuple[int, ...] = ()
        self._kept: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}

    @torch.no_grad()
    def __call__(
        self,
        model: EncodesText,
        names: Sequence[str],
        *,
        templates: Sequence[str] = PLAIN_TEMPLATES,
    ) -> Float[Tensor, "k c"]:
        """`class_embeddings`, computed once for the same names, templates and weights."""
        weights = _fingerprint(model.text_encoder)
        if weights != self._weights:
            self._weights = weights
            self._kept.clear()
        key = (tuple(names), tuple(templates))
        if key not in self._kept:
            self._kept[key] = class_embeddings(model, names, templates=templates)
        return self._kept[key]


def _fingerprint(module: nn.Module) -> tuple[int, ...]:
    parameters = list(module.parameters())
    hashes = torch.stack([torch.hash_tensor(p).view(torch.int64) for p in parameters])
    return (hash(parameters[0].device), *hashes.tolist())
