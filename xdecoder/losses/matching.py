"""Which query answers for which target: the cheapest assignment per image and layer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xdecoder.losses.mask import MaskTerms, pairwise_terms

# logits [..., Q, P] and targets [..., M, P] to terms [..., Q, M]
PairwiseTerms = Callable[[Tensor, Tensor], MaskTerms]


class NonFiniteCostError(ValueError):
    """Terms must not be trained on: a matching cost is inf or nan, in the tensors that are named.

    terms: all of the step's, from an assignment that means nothing. They reach the same parameters
    as those of other processes, which wait for the same collectives and gradients.
    """

    def __init__(self, complaint: str, terms: dict[str, Tensor]) -> None:
        super().__init__(complaint)
        self.terms = terms


@dataclass(frozen=True, kw_only=True)
class MatchingCosts:
    """Weights of the three parts of a cost. Source: configs of microsoft/X-Decoder."""

    label: float = 2.0
    bce: float = 5.0
    dice: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Matching:
    """For every target of the batch (image after image) and layer, the query it was given.

    An image with more targets than queries leaves targets without one: `is_matched` is False
    and `query_index` is 0 there. complaint: why the assignment means nothing, else empty; hand it
    to `usable` with the terms that were computed from it.
    """

    image_index: Int[Tensor, " m"]
    query_index: Int[Tensor, "l m"]
    is_matched: Bool[Tensor, "l m"]
    complaint: str = ""

    def last(self, num_layers: int) -> "Matching":
        """The matching of the last predictions only."""
        return Matching(
            image_index=self.image_index,
            query_index=self.query_index[-num_layers:],
            is_matched=self.is_matched[-num_layers:],
            complaint=self.complaint,
        )


def pad_targets(flat: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all images, one image after another, as [B, most, ...] with zeros at the end."""
    return pad_sequence(list(flat.split(list(counts))), batch_first=True)


def matching_cost(
    label_probs: Float[Tensor, "*b q m"],
    point_logits: Float[Tensor, "*b q p"],
    point_targets: Float[Tensor, "*b m p"],
    costs: MatchingCosts,
    pairwise: PairwiseTerms = pairwise_terms,
) -> Float[Tensor, "*b q m"]:
    """What it costs to give a target to a query; less for a likelier label and a better mask."""
    terms = pairwise(point_logits, point_targets)
    return costs.bce * terms.bce + costs.dice * terms.dice - costs.label * label_probs


@torch.no_grad()
def match(
    *,
    label_probs: Float[Tensor, "l b q m"],
    mask_embeddings: Float[Tensor, "l b q c"],
    point_features: Float[Tensor, "b c p"],
    point_targets: Float[Tensor, "b m p"],
    counts: Sequence[int],
    costs: MatchingCosts,
    pairwise: PairwiseTerms = pairwise_terms,
) -> Matching:
    """The cheapest assignment of queries to targets, per layer and image.

    label_probs: how probable each query finds the label of each target; point_features: mask
    features read at the points that all masks of an image share. A mask logit is linear in the
    features, so their dot product is the mask read at those points. pairwise: how masks compare.
    Where a cost is not finite, the matching has a complaint that names the tensor it came from.
    """
    device = mask_embeddings.device
    num_layers = len(mask_embeddings)
    total = sum(counts)
    query_index = torch.zeros(num_layers, total, dtype=torch.long)
    is_matched = torch.zeros(num_layers, total, dtype=torch.bool)
    complaint = ""
    # a layer at a time: the mask logits of all queries at all points are the largest tensor here
    for layer in range(num_layers if total else 0):
        logits = mask_embeddings[layer] @ point_features  # [B, Q, P]
        cost = matching_cost(label_probs[layer], logits, point_targets, costs, pairwise)
        if not complaint and not torch.isfinite(cost).all():
            complaint = _complaint(
                layer,
                label_probs=label_probs[layer],
                mask_logits=logits,
                point_targets=point_targets,
            )
        assign(cost.cpu(), counts, query_index[layer], is_matched[layer])
    image_index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Matching(
        image_index=image_index.to(device),
        query_index=query_index.to(device),
        is_matched=is_matched.to(device),
        complaint=complaint,
    )


def usable(terms: dict[str, Tensor], complaints: Iterable[str]) -> dict[str, Tensor]:
    """The terms, if no matching that they were computed from has a complaint.

    Raises: NonFiniteCostError with the terms and the first complaint.
    """
    found = next((complaint for complaint in complaints if complaint), "")
    if found:
        raise NonFiniteCostError(found, terms)
    return terms


def assign(
    cost: Float[Tensor, "b q m"],
    counts: Sequence[int],
    query_index: Int[Tensor, " total"],
    is_matched: Bool[Tensor, " total"],
) -> None:
    """Solve each image's assignment and write it into the two rows."""
    start = 0
    for image, count in enumerate(counts):
        rows, columns = cheapest_pairs(cost[image, :, :count])
        targets = columns + start
        query_index[targets] = rows
        is_matched[targets] = True
        start += count


def cheapest_pairs(cost: Float[Tensor, "q m"]) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Rows, in ascending order, and their columns: as many pairs as the shorter side has.

    A cost that is not finite counts as zero; whoever has one must not train on the pairs.
    """
    finite = cost.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    rows, columns = linear_sum_assignment(finite.numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _complaint(layer: int, **tensors: Tensor) -> str:
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    return (
        f"match: costs must be finite; prediction {layer} has inf or nan in "
        f"{', '.join(bad) or 'the sum of finite parts'}. Lower the learning rate or look at the "
        "last batch."
    )
