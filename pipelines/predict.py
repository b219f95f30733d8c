"""`python -m pipelines.predict`: what a trained model sees in pictures, as PNG and JSON.

    python -m pipelines.predict --checkpoint runs/demo --task panoptic --image photo.jpg --out out
    python -m pipelines.predict --checkpoint runs/demo --task semantic \\
        --vocabulary circle,square,sky --stuff sky --image photo.jpg --out out
    python -m pipelines.predict --checkpoint runs/boxes --task detection \\
        --vocabulary circle,star --text "the largest thing" --image photo.jpg --out out
    python -m pipelines.predict --checkpoint runs/demo --task referring \\
        --text "the red circle" --text "the sky" --image photos --out out
    python -m pipelines.predict --checkpoint runs/demo --task captioning --beams 3 \\
        --image photo.jpg --out out
    python -m pipelines.predict --checkpoint runs/demo --task region_retrieval \\
        --text "a red circle" --image photos --index photos.index --out out
    python -m pipelines.predict --checkpoint runs/demo --task editing --text "the dog" \\
        --prompt "a cat" --inpainting some_pipeline --image photo.jpg --out out

docs/tasks.md shows every task. A folder stands for all pictures below it. A broken picture is named
at the end, after the others, with exit code 3.
"""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines import answers, box_answers
from pipelines.answers import Answer, Asked
from pipelines.cli import main_of
from pipelines.errors import CheckpointError, ConfigError, DataError, ExitCode
from pipelines.evaluate import size_hw_of, write_json
from pipelines.image_files import Broken, find_images, output_names, with_progress
from pipelines.inpainting import load_inpainting
from pipelines.retrieval_index import index_images
from pipelines.searches import SEARCHES
from xdecoder.batch import Vocabulary
from xdecoder.convert.rules import CheckpointError as ModelCheckpointError
from xdecoder.images import ImageArray, ImageFit
from xdecoder.mask_former.task import read_class_names
from xdecoder.model import XDecoder
from xdecoder.prediction import ANSWERED
from xdecoder.pretrained import Pretrained, load_pretrained
from xdecoder.tasks.editing import EMPTY_SCENE
from xdecoder.tasks.open_vocabulary import own_vocabulary, vocabulary_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A question of ours, by its class; who answers about one picture; and what it needs."""

    question: str
    answer: Callable[[Any, ImageArray, Asked], Answer] | None = None
    needs_text: bool = False
    takes_names: bool = False


_TASKS: Mapping[str, _Task] = {
    "panoptic": _Task(question="Panoptic", answer=answers.panoptic, takes_names=True),
    "semantic": _Task(question="Semantic", answer=answers.semantic, takes_names=True),
    "instance": _Task(question="Instance", answer=answers.instance, takes_names=True),
    "detection": _Task(question="Detection", answer=box_answers.detection, takes_names=True),
    "masks_of_boxes": _Task(question="MasksOfBoxes", answer=box_answers.masks_of_boxes),
    "referring": _Task(question="Referring", answer=answers.referring, needs_text=True),
    "captioning": _Task(question="Captioning", answer=answers.captioning),
    "referring_captioning": _Task(
        question="ReferringCaptioning", answer=answers.referring_captioning, needs_text=True
    ),
    "retrieval": _Task(question="Retrieval", answer=answers.retrieval, needs_text=True),
    "region_retrieval": _Task(question="RegionRetrieval", needs_text=True),
    "editing": _Task(question="Editing", answer=answers.editing, needs_text=True),
}


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
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="run, checkpoint or converted folder")
    add("--task", required=True, choices=sorted(_TASKS))
    add("--image", type=Path, required=True, nargs="+", help="pictures of any kind, or folders")
    add("--text", action="append", default=[], help="a phrase or caption; repeatable")
    add("--out", type=Path, required=True, help="folder for PNG and JSON")
    add("--size", type=size_hw_of, metavar="HxW", help="what the model sees; default: its own")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--without-ema", action="store_true", help="weights, not their average")
    segments = parser.add_argument_group("panoptic, semantic, instance, detection")
    add = segments.add_argument
    add(
        "--vocabulary",
        type=names_of,
        help="a,b,c, or a file with a name a line; default: that of training",
    )
    add("--stuff", type=names_of, default=(), help="names without single objects, in the same way")
    add("--object-threshold", type=float, help="of panoptic segments, 0..1; default: the model's")
    add(
        "--minimum-score",
        type=float,
        default=0.3,
        help="of instances and boxes; default: %(default)s",
    )
    boxes = parser.add_argument_group("detection, masks_of_boxes")
    boxes.add_argument("--masks", action="store_true", help="of what is detected, too")
    boxes.add_argument(
        "--box",
        type=_named_box,
        action="append",
        default=[],
        metavar="NAME=X,Y,X,Y",
        help="whose mask is wanted, in pixels; repeatable",
    )
    _add_text_options(parser)
    return parser


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    captions = parser.add_argument_group("captioning, referring_captioning")
    captions.add_argument("--beams", type=int, default=1, help="1 is greedy")
    captions.add_argument("--max-tokens", type=int, help="default: the model's own")
    searches = parser.add_argument_group("retrieval, region_retrieval over several pictures")
    searches.add_argument("--index", type=Path, help="file of vectors; default: in --out")
    searches.add_argument("--top", type=int, default=8, help="pictures per text")
    edits = parser.add_argument_group("editing")
    edits.add_argument("--inpainting", type=Path, help="folder of a diffusers inpainting pipeline")
    edits.add_argument("--prompt", default=EMPTY_SCENE, help="default removes: %(default)r")
    edits.add_argument("--steps", type=int, default=50, help="of the pipeline")
    edits.add_argument("--seed", type=int, default=0, help="of the pipeline")


def run(options: argparse.Namespace) -> ExitCode:
    """Answer for every picture that can be read, then name those that cannot."""
    _check(options)
    paths = find_images(options.image)
    model = _load(options)
    asked = _asked(options, model)
    options.out.mkdir(parents=True, exist_ok=True)
    broken = Broken()
    is_search = options.task == "region_retrieval" or (
        options.task == "retrieval" and len(paths) > 1
    )
    answering = _TASKS[options.task].answer
    if is_search or answering is None:
        _search(options, paths, model, asked, broken)
    else:
        names = output_names(paths)
        for path, image in broken.read(with_progress(paths, options.task)):
            answer = answering(model, image, asked)
            header = {"image": str(path), "size_hw": list(image.shape[:2])}
            _write(options, f"{names[path]}_{options.task}", answer, header)
    broken.complain(len(paths))
    return ExitCode.FINISHED


def _check(options: argparse.Namespace) -> None:
    if _TASKS[options.task].needs_text and not options.text:
        raise ConfigError(
            f"predict: task {options.task} needs at least one --text; got none. "
            'Add --text "what to look for".'
        )
    if options.task == "masks_of_boxes" and not options.box:
        raise ConfigError(
            "predict: task masks_of_boxes needs at least one --box; got none. "
            "Add --box NAME=X,Y,X,Y in pixels, for example --box cat=10,20,110,220."
        )
    if options.task == "editing" and options.inpainting is None:
        raise ConfigError(
            "predict: task editing needs --inpainting, the folder of an inpainting pipeline of "
            "diffusers; got none."
        )
    if min(options.beams, options.top, options.steps) < 1:
        raise ConfigError(
            "predict: --beams, --top and --steps must be at least 1; got "
            f"{options.beams}, {options.top} and {options.steps}."
        )


def _load(options: argparse.Namespace) -> Pretrained:
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = load_pretrained(options.checkpoint, ema=not options.without_ema)
    except ModelCheckpointError as error:
        raise CheckpointError(str(error)) from error
    _check_family(options, model)
    return model.to(device)


def _check_family(options: argparse.Namespace, model: Pretrained) -> None:
    family = type(model).__name__
    who = f"predict: {_with_article(family)}"
    known = [task for task, each in _TASKS.items() if each.question in ANSWERED[family]]
    if options.task not in known:
        raise ConfigError(
            f"{who} knows no {options.task}. Ask it for {', '.join(known)}, or use "
            f"{_others(_TASKS[options.task].question)}."
        )
    if options.task == "detection" and options.text and "Grounding" not in ANSWERED[family]:
        raise ConfigError(
            f"{who} reads no phrases; got --text for detection. Leave it out, or use "
            f"{_others('Grounding')}."
        )


def _others(question: str) -> str:
    families = [name for name, kinds in ANSWERED.items() if question in kinds]
    return " or ".join(_with_article(name) for name in families)


def _with_article(family: str) -> str:
    # an X-Decoder, an OpenSeeD, a MaskFormer
    return f"{'an' if family[0] in 'OX' else 'a'} {family}"


def _asked(options: argparse.Namespace, model: Pretrained) -> Asked:
    is_edit = options.task == "editing"
    return Asked(
        texts=tuple(options.text),
        boxes=tuple(options.box),
        vocabulary=_vocabulary(options, model) if _takes_names(options) else None,
        fit=None if options.size is None else ImageFit(size_hw=options.size),
        object_threshold=options.object_threshold,
        minimum_score=options.minimum_score,
        with_masks=options.masks,
        num_beams=options.beams,
        max_tokens=options.max_tokens,
        prompt=options.prompt,
        inpaint=load_inpainting(options.inpainting, num_steps=options.steps, seed=options.seed)
        if is_edit
        else None,
    )


def _takes_names(options: argparse.Namespace) -> bool:
    """Whether names are looked for; phrases alone are asked without those of training."""
    is_about_phrases = options.task == "detection" and options.text and not options.vocabulary
    return _TASKS[options.task].takes_names and not is_about_phrases


def _vocabulary(options: argparse.Namespace, model: Pretrained) -> Vocabulary:
    """The names asked for, or those of training; stuff is what `--stuff` or training says."""
    trained = own_vocabulary(model)
    is_thing = dict(zip(trained.names, trained.is_thing, strict=True))
    names = tuple(options.vocabulary or trained.names)
    kinds = tuple(name not in options.stuff and is_thing.get(name, True) for name in names)
    try:
        return vocabulary_of(model, Vocabulary(names=names, is_thing=kinds))
    except ValueError as error:
        raise ConfigError(f"{error} On the command line: --vocabulary a,b,c.") from error


def _search(
    options: argparse.Namespace,
    paths: Sequence[Path],
    model: Pretrained,
    asked: Asked,
    broken: Broken,
) -> None:
    assert isinstance(model, XDecoder)
    index = options.index or options.out / "index.safetensors"
    fit = asked.fit or model.prediction.text
    readable, vectors = index_images(index, paths, model, fit=fit, broken=broken)
    if readable:
        answer = SEARCHES[options.task](model, readable, vectors, asked.texts, top=options.top)
        _write(options, options.task, answer, {"num_images": len(readable)})


def _write(
    options: argparse.Namespace, name: str, answer: Answer, header: Mapping[str, object]
) -> None:
    """The pictures and the JSON of one answer."""
    facts = {"task": options.task, "checkpoint": str(options.checkpoint), **answer.facts}
    write_json(options.out / f"{name}.json", {**header, **facts})
    for end, picture in answer.pictures.items():
        _save(picture, options.out / f"{name}{end}.png")
    _log.info("%s", options.out / f"{name}.{{json,png}}")


def _save(picture: Image.Image, path: Path) -> None:
    try:
        picture.save(path)
    except OSError as error:
        raise DataError(f"{path}: must be a file that can be written; got {error}.") from error


def _named_box(text: str) -> tuple[str, tuple[float, float, float, float]]:
    name, _, numbers = text.rpartition("=")
    try:
        left, top, right, bottom = (float(number) for number in numbers.split(","))
    except ValueError:
        left, top, right, bottom = 0.0, 0.0, 0.0, 0.0
    if not name.strip() or not (left < right and top < bottom):
        raise argparse.ArgumentTypeError(
            f"must be NAME=LEFT,TOP,RIGHT,BOTTOM in pixels, as in cat=10,20,110,220; got {text!r}"
        )
    return name.strip(), (left, top, right, bottom)


def names_of(text: str) -> tuple[str, ...]:
    """The names of a,b,c or of a file with one in each line, for argparse."""
    if Path(text).is_file():
        try:
            return read_class_names(Path(text).read_text().splitlines())
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error}") from error
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    raise SystemExit(main())
