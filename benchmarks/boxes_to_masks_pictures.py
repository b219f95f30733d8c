"""Pictures of `boxes_to_masks.py`: what its models see in unseen scenes, each beside the truth.

python benchmarks/boxes_to_masks_pictures.py --out runs/boxes_to_masks --pictures docs/images
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from boxes_to_masks import BOXES_ONLY, CONDITIONS, REPOSITORY
from boxes_to_masks_measures import Things, unseen
from PIL import Image

from pipelines.drawing import (
    DrawnSegment,
    class_colour,
    contact_sheet,
    draw_segments,
    side_by_side,
)
from pipelines.scenes.vocabulary import SHAPES, STUFF
from xdecoder import Instance, MasksOfBoxes, OpenSeeD, Vocabulary

SIDE_PX = 150
MINIMUM_SCORE = 0.3
NAMES = Vocabulary.of(*SHAPES, *STUFF, stuff=STUFF)
See = Callable[[OpenSeeD, Things], Sequence[DrawnSegment]]


def main() -> None:
    """Draw both sheets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs/boxes_to_masks")
    parser.add_argument("--pictures", type=Path, required=True, help="folder for two PNGs")
    parser.add_argument("--seed", type=int, default=0, help="of the runs that are drawn")
    parser.add_argument("--scenes", type=int, nargs="+", default=[0, 1, 2, 3], help="which of them")
    options = parser.parse_args()
    models = {
        condition: OpenSeeD.from_pretrained(options.out / f"{condition}_{options.seed}")
        for condition in CONDITIONS
    }
    pictures = [each for each in unseen(options.out / "scenes") if set(BOXES_ONLY) & {*each.names}]
    scenes = [pictures[number] for number in options.scenes]
    for name, see in (("found", found), ("given_boxes", of_given_boxes)):
        sheet = contact_sheet([row(scene, models, see) for scene in scenes])
        path = options.pictures / f"boxes_to_masks_{name}.png"
        sheet.quantize(128).save(path, optimize=True)
        print(path)


def row(scene: Things, models: dict[str, OpenSeeD], see: See) -> Image.Image:
    """The truth, and what each model says."""
    segments = {"truth": truth(scene)}
    segments |= {condition: see(model, scene) for condition, model in models.items()}
    drawn = [draw_segments(scene.image, each, short_side_px=SIDE_PX) for each in segments.values()]
    return side_by_side(drawn, list(segments))


def truth(scene: Things) -> list[DrawnSegment]:
    """The shapes that only ever had boxes."""
    return [
        segment(name, mask.numpy())
        for name, mask in zip(scene.names, scene.masks, strict=True)
        if name in BOXES_ONLY
    ]


def found(model: OpenSeeD, scene: Things) -> list[DrawnSegment]:
    """Masks that the model finds of such shapes by itself."""
    question = Instance(vocabulary=NAMES, minimum_score=MINIMUM_SCORE)
    instances = model.predict(scene.image, question).instances
    names = [NAMES.names[index] for index in instances.class_ids.tolist()]
    return [
        segment(name, mask.numpy())
        for name, mask in zip(names, instances.masks, strict=True)
        if name in BOXES_ONLY
    ]


def of_given_boxes(model: OpenSeeD, scene: Things) -> list[DrawnSegment]:
    """Masks that the model gives to the true boxes of such shapes, asked for all boxes."""
    question = MasksOfBoxes(boxes_xyxy_px=scene.boxes_xyxy_px, names=scene.names)
    masks = model.predict(scene.image, question).masks
    return [
        segment(name, mask.numpy())
        for name, mask in zip(scene.names, masks, strict=True)
        if name in BOXES_ONLY
    ]


def segment(name: str, region: object) -> DrawnSegment:
    """A region in the colour of its name."""
    return DrawnSegment(region=region, label=name, colour=class_colour(SHAPES.index(name)))


if __name__ == "__main__":
    main()
