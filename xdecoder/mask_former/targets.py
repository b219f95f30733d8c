"""What queries with a fixed list of classes should find: annotated segments under the model's ids.

annotated                panoptic       instance       semantic
dog 1, dog 2, grass      3 targets      2 targets      2 targets: dog, grass
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from xdecoder.batch import SegmentationBatch, SegmentTargets, Vocabulary
from xdecoder.mask_former.config import TargetKind


def closed_targets(
    batch: SegmentationBatch, class_names: Sequence[str], kind: TargetKind
) -> tuple[SegmentTargets, ...]:
    """The segments of each image with places in `class_names` as class ids.

    Segments of classes that the list does not have are left out. `instance` leaves out stuff too;
    `semantic` joins the segments of each class.

    Raises: ValueError where the batch is not labelled with all of `class_names`.
    """
    place_of = _places(batch.vocabulary, class_names, things_only=kind == "instance")
    return tuple(_selected(image, place_of, kind == "semantic") for image in batch.segments)


def _places(
    vocabulary: Vocabulary, class_names: Sequence[str], *, things_only: bool
) -> Int[Tensor, " k"]:
    """For each class of the vocabulary its place in the list, -1 where it has none."""
    missing = sorted(set(class_names) - set(vocabulary.names))
    if missing:
        raise ValueError(
            f"MaskTask: the batch must be labelled with every class of the model; of "
            f"{len(class_names)} classes its vocabulary lacks {len(missing)}: "
            f"{', '.join(missing[:5])}. Prepare the data with these names, or set "
            "model.class_names to those of the data."
        )
    place_of = {name: place for place, name in enumerate(class_names)}
    return torch.tensor(
        [
            -1 if things_only and not is_thing else place_of.get(name, -1)
            for name, is_thing in zip(vocabulary.names, vocabulary.is_thing, strict=True)
        ]
    )


def _selected(
    image: SegmentTargets, place_of: Int[Tensor, " k"], is_semantic: bool
) -> SegmentTargets:
    places = place_of.to(image.class_ids.device)[image.class_ids]
    is_known = places >= 0
    masks, places = image.masks[is_known], places[is_known]
    if not is_semantic:
        return SegmentTargets(masks=masks, class_ids=places)
    present = places.unique()
    joined = [masks[places == place].any(0) for place in present]
    stacked = torch.stack(joined) if joined else masks
    return SegmentTargets(masks=stacked, class_ids=present)
