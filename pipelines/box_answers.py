"""Boxes in one picture, drawn and as JSON: those of names, of phrases, and masks of given ones.

Boxes are COCO's: x, y, width and height in pixels of the upright picture.
"""

import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

from jaxtyping import Bool
from torch import Tensor

from pipelines.answers import NOTHING_FOUND, Answer, Asked, shape_of
from pipelines.box_drawing import DrawnBox, draw_boxes
from pipelines.drawing import HIGHLIGHT, DrawnSegment, class_colour, with_strip
from pipelines.errors import ConfigError
from xdecoder.images import ImageArray
from xdecoder.openseed.questions import MasksOfBoxes, has_area
from xdecoder.pretrained import Pretrained
from xdecoder.tasks.detection import (
    Detection,
    FoundBoxes,
    FoundPhrases,
    Grounding,
    ReferringDetection,
)

_Corners = tuple[float, float, float, float]
_Item = TypeVar("_Item")
_DOUBTFUL = "nothing that fits these well"


def detection(model: Pretrained, image: ImageArray, asked: Asked) -> Answer:
    """Things with names, and the box of each phrase; the surest is drawn on top.

    Phrases below the least score are written below the picture; the JSON has the box of each.
    """
    names, phrases = _found(model, image, asked)
    facts: dict[str, Any] = {}
    drawn: list[DrawnBox] = []
    regions: list[DrawnSegment] = []
    if names is not None:
        facts["detections"] = _facts("name", names.names, names)
        colours = [class_colour(index) for index in names.class_ids.tolist()]
        drawn += _drawn(names.names, names, colours)[::-1]
        regions += _regions(names.masks, colours)[::-1]
    doubtful: list[str] = []
    if phrases is not None:
        facts["phrases"] = _facts("text", phrases.phrases, phrases)
        colours = [HIGHLIGHT] * len(phrases.phrases)
        boxes = _drawn(phrases.phrases, phrases, colours, is_dashed=True)
        is_sure = (phrases.scores >= asked.minimum_score) & has_area(phrases.boxes_xyxy_px)
        drawn += _those(boxes, is_sure)
        regions += _those(_regions(phrases.masks, colours), is_sure)
        doubtful = [box.label for box in _those(boxes, ~is_sure)]
    picture = draw_boxes(image, drawn, regions=regions)
    if doubtful:
        picture = with_strip(picture, ", ".join(doubtful), kicker=_DOUBTFUL)
    elif not drawn:
        picture = with_strip(picture, NOTHING_FOUND)
    return Answer(pictures={"": picture}, facts=facts)


def masks_of_boxes(model: Pretrained, image: ImageArray, asked: Asked) -> Answer:
    """What is inside each given box."""
    question: Any = MasksOfBoxes(
        boxes_xyxy_px=tuple(box for _, box in asked.boxes),
        names=tuple(name for name, _ in asked.boxes),
        fit=asked.fit,
    )
    try:
        found = model.predict(image, question)
    except ValueError as error:
        raise ConfigError(f"predict: {error}") from error
    distinct = list(dict.fromkeys(found.names))
    colours = [class_colour(distinct.index(name)) for name in found.names]
    drawn = _drawn(found.names, found, colours)
    picture = draw_boxes(image, drawn, regions=_regions(found.masks, colours))
    return Answer(pictures={"": picture}, facts={"masks": _facts("name", found.names, found)})


def _found(
    model: Pretrained, image: ImageArray, asked: Asked
) -> tuple[FoundBoxes | None, FoundPhrases | None]:
    """What names found and what phrases found; None for a kind that was not asked."""
    names, texts = asked.vocabulary, asked.texts
    # families meet here only: which of them answers was checked before
    answerer: Any = model
    if names is None:
        only = ReferringDetection(phrases=texts, fit=asked.fit, with_masks=asked.with_masks)
        return None, answerer.predict(image, only)
    if not texts:
        things = Detection(
            vocabulary=names,
            fit=asked.fit,
            minimum_score=asked.minimum_score,
            with_masks=asked.with_masks,
        )
        return answerer.predict(image, things), None
    both = Grounding(
        phrases=texts,
        vocabulary=names,
        fit=asked.fit,
        minimum_score=asked.minimum_score,
        with_masks=asked.with_masks,
    )
    found = answerer.predict(image, both)
    return found.names, found.phrases


def _facts(key: str, texts: Sequence[str], found: Any) -> list[dict[str, Any]]:
    facts = []
    for place, (text, score, corners) in enumerate(_rows(texts, found)):
        left, top, right, bottom = corners
        row = {key: text, "score": score, "bbox": [left, top, right - left, bottom - top]}
        if found.masks is not None:
            shape = shape_of(found.masks[place].cpu().numpy())
            row |= {name: shape[name] for name in ("area_px", "segmentation")}
        facts.append(row)
    return facts


def _drawn(
    texts: Sequence[str], found: Any, colours: Sequence[Any], *, is_dashed: bool = False
) -> list[DrawnBox]:
    return [
        DrawnBox(
            box_xyxy_px=corners,
            label=f"{text} {score:.2f}",
            colour=colour,
            is_dashed=is_dashed,
        )
        for (text, score, corners), colour in zip(_rows(texts, found), colours, strict=True)
    ]


def _those(items: Sequence[_Item], is_chosen: Bool[Tensor, " n"]) -> list[_Item]:
    return list(itertools.compress(items, is_chosen.tolist()))


def _rows(texts: Sequence[str], found: Any) -> list[tuple[str, float, _Corners]]:
    boxes = [tuple(box) for box in found.boxes_xyxy_px.tolist()]
    return list(zip(texts, found.scores.tolist(), boxes, strict=True))


def _regions(masks: Bool[Tensor, "n h w"] | None, colours: Sequence[Any]) -> list[DrawnSegment]:
    if masks is None:
        return []
    return [
        DrawnSegment(region=mask.cpu().numpy(), label="", colour=colour)
        for mask, colour in zip(masks, colours, strict=True)
    ]
