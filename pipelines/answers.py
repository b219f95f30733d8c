"""What a model says about one picture, drawn and as JSON: one function per task.

Regions are COCO's RLE; boxes end one pixel after their last.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from pipelines.drawing import (
    DrawnSegment,
    class_colour,
    draw_region,
    draw_segments,
    enlarged,
    side_by_side,
    with_strip,
)
from pipelines.evaluation.instance import encode_mask
from xdecoder.batch import Vocabulary
from xdecoder.images import ImageArray, ImageFit
from xdecoder.model import XDecoder
from xdecoder.pretrained import Pretrained
from xdecoder.tasks.captioning import Caption, Captioning
from xdecoder.tasks.editing import Editing, Inpaint
from xdecoder.tasks.open_vocabulary import Instance, Panoptic, Semantic
from xdecoder.tasks.referring import FoundRegions, Referring
from xdecoder.tasks.referring_captioning import ReferringCaptioning
from xdecoder.tasks.retrieval import Retrieval

NOTHING_FOUND = "nothing found"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks of every picture; None leaves it to the model.

    boxes: names, each with x, y, x, y in pixels.
    """

    texts: tuple[str, ...] = ()
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()
    vocabulary: Vocabulary | None = None
    fit: ImageFit | None = None
    object_threshold: float | None = None
    minimum_score: float = 0.3
    with_masks: bool = False
    num_beams: int = 1
    max_tokens: int | None = None
    prompt: str = ""
    inpaint: Inpaint | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Pictures by the ends of their file names, and what the JSON says."""

    pictures: dict[str, Image.Image]
    facts: dict[str, Any]


def panoptic(model: Pretrained, image: ImageArray, asked: Asked) -> Answer:
    """Segments that do not overlap."""
    question = Panoptic(
        vocabulary=asked.vocabulary, fit=asked.fit, object_threshold=asked.object_threshold
    )
    found = _predicted(model, image, question)
    ids, names = found.ids.cpu().numpy(), found.vocabulary.names
    drawn, facts = [], []
    for segment in found.segments:
        region, name = ids == segment.id, names[segment.class_id]
        drawn.append(
            DrawnSegment(
                region=region,
                label=name,
                colour=class_colour(segment.class_id),
                is_thing=segment.is_thing,
            )
        )
        facts.append(
            {
                "id": segment.id,
                "name": name,
                "is_thing": segment.is_thing,
                "score": segment.score,
                **shape_of(region),
            }
        )
    drawn.sort(key=lambda each: each.is_thing)
    return Answer(pictures={"": draw_segments(image, drawn)}, facts={"segments": facts})


def semantic(model: Pretrained, image: ImageArray, asked: Asked) -> Answer:
    """The class of every pixel."""
    found = _predicted(model, image, Semantic(vocabulary=asked.vocabulary, fit=asked.fit))
    class_ids, names = found.class_ids.cpu().numpy(), found.vocabulary.names
    drawn, facts = [], []
    for index in np.unique(class_ids).tolist():
        region = class_ids == index
        drawn.append(
            DrawnSegment(
                region=region, label=names[index], colour=class_colour(index), is_thing=False
            )
        )
        facts.append({"name": names[index], **shape_of(region)})
    return Answer(pictures={"": draw_segments(image, drawn)}, facts={"classes": facts})


def instance(model: Pretrained, image: ImageArray, asked: Asked) -> Answer:
    """Things one by one, the surest first; the surest is drawn on top."""
    question = Instance(
        vocabulary=asked.vocabulary, fit=asked.fit, minimum_score=asked.minimum_score
    )
    answer = _predicted(model, image, question)
    found, names = answer.instances, answer.vocabulary.names
    drawn, facts = [], []
    for score, class_id, mask in zip(
        found.scores.tolist(), found.class_ids.tolist(), found.masks, strict=True
    ):
        region = mask.cpu().numpy()
        label = f"{names[class_id]} {score:.2f}"
        drawn.append(DrawnSegment(region=region, label=label, colour=class_colour(class_id)))
        facts.append({"name": names[class_id], "score": score, **shape_of(region)})
    return Answer(pictures={"": draw_segments(image, drawn[::-1])}, facts={"instances": facts})


def referring(model: Pretrained, image: ImageArray, asked: Asked) -> Answer:
    """The region of each phrase."""
    found = _predicted(model, image, Referring(phrases=asked.texts, fit=asked.fit))
    return Answer(pictures={"": draw_phrases(image, found)}, facts={"phrases": phrase_facts(found)})


def captioning(model: XDecoder, image: ImageArray, asked: Asked) -> Answer:
    """One sentence."""
    question = Captioning(num_beams=asked.num_beams, max_tokens=asked.max_tokens, fit=asked.fit)
    caption = model.predict(image, question)
    picture = with_strip(enlarged(image), caption.text or "–", kicker="caption")
    return Answer(pictures={"": picture}, facts=_caption_facts(caption))


def referring_captioning(model: XDecoder, image: ImageArray, asked: Asked) -> Answer:
    """One sentence about the region of each phrase."""
    pictures, facts = {}, []
    for place, phrase in enumerate(asked.texts):
        question = ReferringCaptioning(
            phrase=phrase,
            num_beams=asked.num_beams,
            max_tokens=asked.max_tokens,
            fit=asked.fit,
        )
        found = model.predict(image, question)
        region = _array(found.region)
        said = NOTHING_FOUND if found.caption is None else found.caption.text
        pictures["" if len(asked.texts) == 1 else f"_{place}"] = with_strip(
            draw_region(image, region), said or "–", kicker=f"caption of: {phrase}"
        )
        caption = {"caption": None} if found.caption is None else _caption_facts(found.caption)
        facts.append({"text": phrase, **caption, **shape_of(region)})
    return Answer(pictures=pictures, facts={"phrases": facts})


def retrieval(model: XDecoder, image: ImageArray, asked: Asked) -> Answer:
    """The texts in the order in which they fit one picture."""
    question = Retrieval(texts=asked.texts, fit=asked.fit)
    similarity = model.predict([image], question)[:, 0]
    order = similarity.argsort(descending=True, stable=True).tolist()
    ranking = [{"text": asked.texts[i], "similarity": float(similarity[i])} for i in order]
    lines = "  ·  ".join(f"{row['text']} {row['similarity']:.2f}" for row in ranking)
    picture = with_strip(enlarged(image), lines, kicker="best fitting text first")
    return Answer(pictures={"": picture}, facts={"ranking": ranking})


def editing(model: XDecoder, image: ImageArray, asked: Asked) -> Answer:
    """The picture with something else where each phrase is, one picture per phrase."""
    assert asked.inpaint is not None
    pictures, facts = {}, []
    for place, phrase in enumerate(asked.texts):
        question = Editing(phrase=phrase, prompt=asked.prompt, inpaint=asked.inpaint)
        edited = model.predict(image, question)
        end = "" if len(asked.texts) == 1 else f"_{place}"
        pictures[end] = Image.fromarray(edited.pixels)
        panels = [
            enlarged(image),
            draw_region(image, edited.region),
            enlarged(edited.pixels),
        ]
        titles = ["before", phrase if edited.region.any() else NOTHING_FOUND, asked.prompt]
        pictures[f"{end}_panels"] = side_by_side(panels, titles)
        facts.append({"text": phrase, "prompt": asked.prompt, **shape_of(edited.region)})
    return Answer(pictures=pictures, facts={"edits": facts})


def draw_phrases(image: ImageArray, found: FoundRegions) -> Image.Image:
    """One phrase alone is lit, several are tinted; what means nothing is said below."""
    empty = [p for p, mask in zip(found.phrases, found.masks, strict=True) if not mask.any()]
    missed = f"{NOTHING_FOUND}: {', '.join(empty)}"
    if len(found.phrases) == 1:
        picture = draw_region(image, _array(found.masks[0]))
        return with_strip(picture, missed if empty else found.phrases[0], kicker="phrase")
    drawn = [
        DrawnSegment(region=_array(mask), label=phrase, colour=class_colour(index))
        for index, (phrase, mask) in enumerate(zip(found.phrases, found.masks, strict=True))
    ]
    picture = draw_segments(image, drawn)
    return with_strip(picture, missed) if empty else picture


def phrase_facts(found: FoundRegions) -> list[dict[str, Any]]:
    """What the JSON says of each phrase."""
    return [
        {"text": phrase, "score": score, **shape_of(_array(mask))}
        for phrase, score, mask in zip(
            found.phrases, found.scores.tolist(), found.masks, strict=True
        )
    ]


def shape_of(region: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Area, box and RLE of a region; the box of an empty one is zeros."""
    rows, columns = np.nonzero(region.any(1))[0], np.nonzero(region.any(0))[0]
    box = [0, 0, 0, 0]
    if len(rows):
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    return {
        "area_px": int(region.sum()),
        "box_xyxy_px": box,
        "segmentation": encode_mask(region),
    }


def _predicted(model: Pretrained, image: ImageArray, question: Any) -> Any:
    # several families answer these questions; their type systems meet here only
    return model.predict(image, question)


def _caption_facts(caption: Caption) -> dict[str, Any]:
    return {
        "caption": caption.text,
        "log_prob": caption.log_prob,
        "num_tokens": caption.num_tokens,
    }


def _array(mask: Tensor) -> Bool[np.ndarray, "h w"]:
    return mask.cpu().numpy()
