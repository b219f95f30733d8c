"""Targets as extra queries: their boxes disturbed to be restored, or exact to be given masks.

Source: IDEA-Research/OpenSeeD, prepare_for_dn, after DN-DETR (arXiv 2203.01305).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xdecoder.losses.draws import UniformSource
from xdecoder.openseed.config import DenoisingConfig


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Queries made of names and boxes, in groups that do not see each other.

    class_ids: whose name a query is made of; is_used: False for the padding of images with fewer
    targets. image_index, place, target: the used queries in the order group by group, image by
    image, target by target. size: queries of one group.
    """

    class_ids: Int[Tensor, "b p"]
    boxes_cxcywh01: Float[Tensor, "b p 4"]
    is_used: Bool[Tensor, "b p"]
    image_index: Int[Tensor, " n"]
    place: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    num_groups: int
    size: int

    @property
    def count(self) -> int:
        """How many queries they are, padding included."""
        return self.num_groups * self.size

    def may_attend(self, num_others: int) -> Bool[Tensor, "1 1 r r"]:
        """Who sees whom when these queries stand before `num_others` ordinary ones.

        A group sees itself and the ordinary queries, which do not see any group.
        """
        device = self.class_ids.device
        group = torch.arange(self.count, device=device) // max(self.size, 1)
        group = torch.cat([group, group.new_full((num_others,), -1)])
        is_other = group == -1
        return ((group[:, None] == group[None]) | is_other[None])[None, None]


def conditions(
    class_ids: Sequence[Int[Tensor, " _m"]],
    boxes_cxcywh01: Sequence[Float[Tensor, "_m 4"]],
    *,
    num_groups: int,
) -> Conditions:
    """Each image's targets as queries, `num_groups` times over; one of padding without any."""
    device = class_ids[0].device
    counts = [len(ids) for ids in class_ids]
    # ranks with and without targets use the same parameters, which ZeRO needs
    size = max(*counts, 1)
    shape = (len(counts), num_groups * size)
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    within = torch.cat([torch.arange(count) for count in counts])
    place = torch.cat([within + size * group for group in range(num_groups)]).to(device)
    image = image.repeat(num_groups).to(device)
    ids = torch.zeros(shape, dtype=torch.long, device=device)
    # the logit of a padding box is 0
    boxes = torch.full((*shape, 4), 0.5, device=device)
    is_used = torch.zeros(shape, dtype=torch.bool, device=device)
    ids[image, place] = torch.cat(list(class_ids)).repeat(num_groups)
    boxes[image, place] = torch.cat(list(boxes_cxcywh01)).repeat(num_groups, 1).to(boxes)
    is_used[image, place] = True
    return Conditions(
        class_ids=ids,
        boxes_cxcywh01=boxes,
        is_used=is_used,
        image_index=image,
        place=place,
        target=torch.arange(sum(counts), device=device).repeat(num_groups),
        num_groups=num_groups,
        size=size,
    )


def disturbed(
    class_ids: Sequence[Int[Tensor, " _m"]],
    boxes_cxcywh01: Sequence[Float[Tensor, "_m 4"]],
    draws: UniformSource,
    config: DenoisingConfig,
) -> Conditions | None:
    """The targets with shifted and scaled boxes; None where `num_queries` is 0.

    As many groups as `num_queries` holds of the image with most targets; if it holds none, or there
    are no targets, only padding.
    """
    if not config.num_queries:
        return None
    most = max(len(ids) for ids in class_ids)
    if most > config.num_queries:
        class_ids = [ids[:0] for ids in class_ids]
        boxes_cxcywh01 = [boxes[:0] for boxes in boxes_cxcywh01]
        most = 0
    num_groups = config.num_queries // most if most else 1
    exact = conditions(class_ids, boxes_cxcywh01, num_groups=num_groups)
    rows = (exact.image_index, exact.place)
    boxes = exact.boxes_cxcywh01[rows]  # [N, 4]
    noise = draws.uniform(len(boxes), 4).to(boxes) * 2 - 1
    reach = torch.cat([boxes[:, 2:] / 2, boxes[:, 2:]], -1)
    shifted = exact.boxes_cxcywh01.clone()
    shifted[rows] = (boxes + noise * reach * config.box_noise).clamp(0, 1)
    return Conditions(
        class_ids=exact.class_ids,
        boxes_cxcywh01=shifted,
        is_used=exact.is_used,
        image_index=exact.image_index,
        place=exact.place,
        target=exact.target,
        num_groups=exact.num_groups,
        size=exact.size,
    )
