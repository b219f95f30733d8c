"""`python -m pipelines.predict`: what a trained model sees in a picture, as PNG and JSON.

    python -m pipelines.predict --checkpoint runs/demo --task panoptic --image photo.jpg --out out
    python -m pipelines.predict --checkpoint runs/demo --task semantic \\
        --vocabulary circle,square,sky --stuff sky --image photo.jpg --out out
    python -m pipelines.predict --checkpoint runs/demo --task referring \\
        --text "the red circle" --image photo.jpg --out out
    python -m pipelines.predict --checkpoint runs/demo --task retrieval \\
        --text "a dog" --text "a cat" --image photo.jpg --out out
"""

import argparse
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.cli import main_of
from pipelines.config import RunConfig
from pipelines.data.shards import MANIFEST_NAME, read_manifest
from pipelines.drawing import (
    DrawnSegment,
    class_colour,
    draw_region,
    draw_segments,
    enlarged,
    with_strip,
)
from pipelines.engine.checkpoint import load_model
from pipelines.errors import ConfigError, ExitCode
from pipelines.evaluate import size_hw_of, write_json
from pipelines.evaluation.images import read_image
from pipelines.evaluation.instance import encode_mask
from pipelines.evaluation.mask_predictor import check_known
from pipelines.evaluation.options import options_of_run
from pipelines.evaluation.panels import found_segments
from pipelines.evaluation.predictor import ImageArray, Predictor
from pipelines.evaluation.predictors import predictor_of
from xdecoder.batch import Vocabulary
from xdecoder.mask_former.config import MaskFormerConfig
from xdecoder.mask_former.task import read_class_names

_log = logging.getLogger(__name__)
Answer = tuple[Image.Image, dict[str, Any]]
_WITH_VOCABULARY = ("panoptic", "semantic", "instance")
_WITH_TEXT = ("referring", "retrieval")
# an instance less sure than this is in the JSON but not in the picture
_DRAWN_SCORE = 0.3


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command line."""
    return main_of(run, parser(), argv)


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="run or checkpoint folder")
    parser.add_argument("--task", required=True, choices=sorted(_ANSWERS))
    parser.add_argument("--image", type=Path, required=True, nargs="+", help="of any size and kind")
    parser.add_argument(
        "--text", action="append", default=[], help="a phrase or caption; repeatable"
    )
    parser.add_argument(
        "--vocabulary", type=_names, help="a,b,c, or a file with a name a line; default: training's"
    )
    parser.add_argument("--stuff", type=_names, default=(), help="names without single objects")
    parser.add_argument("--out", type=Path, required=True, help="folder for PNG and JSON")
    parser.add_argument("--size", type=size_hw_of, metavar="HxW", help="default: as in training")
    parser.add_argument("--object-threshold", type=float, help="of panoptic segments")
    parser.add_argument("--minimum-score", type=float, help="of instances; default: 0")
    parser.add_argument("--without-ema", action="store_true", help="weights, not their average")
    return parser


def run(options: argparse.Namespace) -> ExitCode:
    """Predict every image, and write NAME_TASK.png and NAME_TASK.json for each."""
    if options.task in _WITH_TEXT and not options.text:
        raise ConfigError(
            f"predict: task {options.task} needs at least one --text; got none. "
            'Add --text "what to look for".'
        )
    images = [(path, read_image(path)) for path in options.image]
    model, config = load_model(options.checkpoint, ema=not options.without_ema)
    vocabulary = Vocabulary(names=(), is_thing=())
    if options.task in _WITH_VOCABULARY:
        vocabulary = vocabulary_of_run(config, options.vocabulary, options.stuff)
    predictor = predictor_of(model, options=_settings(options, config))
    options.out.mkdir(parents=True, exist_ok=True)
    for path, image in images:
        picture, facts = _ANSWERS[options.task](predictor, image, vocabulary, options.text)
        stem = options.out / f"{path.stem}_{options.task}"
        picture.save(stem.with_name(f"{stem.name}.png"))
        header = {
            "image": str(path),
            "size_hw": list(image.shape[:2]),
            "task": options.task,
            "checkpoint": str(options.checkpoint),
        }
        write_json(stem.with_name(f"{stem.name}.json"), header | facts)
        _log.info("%s: %s.{png,json}", path, stem)
    return ExitCode.FINISHED


def vocabulary_of_run(
    config: RunConfig, names: Sequence[str] | None, stuff: Sequence[str]
) -> Vocabulary:
    """The names asked for, or else those that the run was trained with.

    A name is stuff if `stuff` says so, or if it was in training.

    Raises:
        ConfigError: no names are given, and the shards of the run are not there any more; or a
            model with a fixed list of classes does not have one of the names.
    """
    trained = _trained_classes(config)
    chosen = tuple(names or trained)
    if isinstance(config.model, MaskFormerConfig):
        check_known(tuple(trained), chosen)
    if not chosen:
        raise ConfigError(
            "predict: needs names to look for; got no --vocabulary, and the shards of the run, "
            f"{list(config.data.segmentation.shards)}, are not here. Add --vocabulary a,b,c."
        )
    is_thing = tuple(name not in stuff and trained.get(name, True) for name in chosen)
    return Vocabulary(names=chosen, is_thing=is_thing)


def _trained_classes(config: RunConfig) -> dict[str, bool]:
    """The classes of training, and whether each is a thing, as far as can be known."""
    model = config.model
    if isinstance(model, MaskFormerConfig) and model.class_names:
        is_thing = model.is_thing or (True,) * len(model.class_names)
        return dict(zip(model.class_names, is_thing, strict=True))
    trained: dict[str, bool] = {}
    for shards in config.data.segmentation.shards:
        if (Path(shards) / MANIFEST_NAME).is_file():
            manifest = read_manifest(Path(shards))
            trained |= dict(zip(manifest.names, manifest.is_thing, strict=True))
    return trained


def _settings(options: argparse.Namespace, config: RunConfig) -> Any:
    asked = {
        "size_hw": options.size,
        "text_size_hw": options.size,
        "object_threshold": options.object_threshold,
        "minimum_score": options.minimum_score,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return dataclasses.replace(options_of_run(config), **given)


def _panoptic(
    predictor: Predictor, image: ImageArray, vocabulary: Vocabulary, texts: Sequence[str]
) -> Answer:
    found = predictor.segment([image], vocabulary)[0]
    segments = []
    for ident, index in found.classes.items():
        region = found.segment_ids == ident
        segments.append(
            {
                "id": ident,
                "name": vocabulary.names[index],
                "is_thing": vocabulary.is_thing[index],
                "score": found.scores[ident],
                **_shape(region),
            }
        )
    return draw_segments(image, found_segments(found, vocabulary)), {"segments": segments}


def _semantic(
    predictor: Predictor, image: ImageArray, vocabulary: Vocabulary, texts: Sequence[str]
) -> Answer:
    found = predictor.segment([image], vocabulary)[0]
    drawn, classes = [], []
    for index in np.unique(found.semantic).tolist():
        region, name = found.semantic == index, vocabulary.names[index]
        drawn.append(
            DrawnSegment(region=region, label=name, colour=class_colour(index), is_thing=False)
        )
        classes.append({"name": name, **_shape(region)})
    return draw_segments(image, drawn), {"classes": classes}


def _instance(
    predictor: Predictor, image: ImageArray, vocabulary: Vocabulary, texts: Sequence[str]
) -> Answer:
    found = predictor.segment([image], vocabulary)[0].instances
    drawn = [
        DrawnSegment(
            region=instance.region,
            label=f"{vocabulary.names[instance.class_id]} {instance.score:.2f}",
            colour=class_colour(instance.class_id),
        )
        for instance in reversed(found)
        if instance.score >= _DRAWN_SCORE
    ]
    instances = [
        {
            "name": vocabulary.names[instance.class_id],
            "score": instance.score,
            **_shape(instance.region),
        }
        for instance in found
    ]
    return draw_segments(image, drawn), {"instances": instances}


def _referring(
    predictor: Predictor, image: ImageArray, vocabulary: Vocabulary, texts: Sequence[str]
) -> Answer:
    regions = predictor.refer(image, texts)
    facts = [{"text": text, **_shape(region)} for text, region in zip(texts, regions, strict=True)]
    if len(texts) == 1:
        return with_strip(draw_region(image, regions[0]), texts[0], kicker="phrase"), {
            "phrases": facts
        }
    drawn = [
        DrawnSegment(region=region, label=text, colour=class_colour(index))
        for index, (text, region) in enumerate(zip(texts, regions, strict=True))
    ]
    return draw_segments(image, drawn), {"phrases": facts}


def _caption(
    predictor: Predictor, image: ImageArray, vocabulary: Vocabulary, texts: Sequence[str]
) -> Answer:
    caption = predictor.caption([image])[0]
    return with_strip(enlarged(image), caption or "–", kicker="caption"), {"caption": caption}


def _retrieval(
    predictor: Predictor, image: ImageArray, vocabulary: Vocabulary, texts: Sequence[str]
) -> Answer:
    scores = predictor.embed_texts(texts) @ predictor.embed_images([image])[0]  # [T]
    ranking = [
        {"text": texts[index], "similarity": float(scores[index])}
        for index in np.argsort(-scores, kind="stable").tolist()
    ]
    lines = "  ·  ".join(f"{row['text']} {row['similarity']:.2f}" for row in ranking)
    return with_strip(enlarged(image), lines, kicker="best fitting text first"), {
        "ranking": ranking
    }


_ANSWERS: dict[str, Callable[[Predictor, ImageArray, Vocabulary, Sequence[str]], Answer]] = {
    "panoptic": _panoptic,
    "semantic": _semantic,
    "instance": _instance,
    "referring": _referring,
    "caption": _caption,
    "retrieval": _retrieval,
}


def _shape(region: np.ndarray) -> dict[str, Any]:
    rows, columns = np.nonzero(region.any(1))[0], np.nonzero(region.any(0))[0]
    box = [0, 0, 0, 0]
    if len(rows):
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    area = int(region.sum())
    return {"area_px": area, "box_xyxy_px": box, "segmentation": encode_mask(region)}


def _names(text: str) -> tuple[str, ...]:
    if Path(text).is_file():
        try:
            return read_class_names(Path(text).read_text().splitlines())
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error}") from error
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    raise SystemExit(main())
