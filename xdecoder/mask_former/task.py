"""Training and prediction of MaskFormer and Mask2Former with a fixed list of classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from xdecoder.batch import SegmentationBatch, SegmentTargets
from xdecoder.full_size import FullSizeMasks
from xdecoder.losses.criterion import label_weight
from xdecoder.losses.draws import UniformSource
from xdecoder.losses.matching import usable
from xdecoder.losses.world import World
from xdecoder.mask_former.config import MaskLossConfig
from xdecoder.mask_former.criterion import mask_losses
from xdecoder.mask_former.model import MaskFormer
from xdecoder.mask_former.targets import closed_targets
from xdecoder.tasks.base import Counts, divisors, keyed, without_autocast


@dataclass(frozen=True, kw_only=True)
class MaskTask:
    """Queries find the segments and their classes, at every prediction.

    class_names: in the order of the model's class logits; empty = the batch's own vocabulary.
    """

    config: MaskLossConfig
    world: World
    class_names: tuple[str, ...] = ()
    name: ClassVar[str] = "segmentation"

    def counts(self, model: MaskFormer, batch: SegmentationBatch) -> dict[str, float]:
        return self._counts(model, self._targets(model, batch))

    def _targets(self, model: MaskFormer, batch: SegmentationBatch) -> tuple[SegmentTargets, ...]:
        names = self.class_names or batch.vocabulary.names
        if len(names) != model.num_classes:
            raise ValueError(
                f"MaskTask: the batch must be labelled with the model's {model.num_classes} "
                f"classes; got {len(names)}. Set model.num_classes to that."
            )
        return closed_targets(batch, names, self.config.targets)

    def _counts(self, model: MaskFormer, targets: Sequence[SegmentTargets]) -> dict[str, float]:
        per_image = [len(segments.class_ids) for segments in targets]
        weight = label_weight(per_image, model.num_queries, self.config.background)
        return {
            "segmentation/label_weight": weight,
            "segmentation/segments": float(sum(per_image)),
        }

    def losses(
        self,
        model: MaskFormer,
        batch: SegmentationBatch,
        draws: UniformSource,
        counts: Counts | None = None,
    ) -> dict[str, Tensor]:
        """Weighted terms under `loss_key`.

        Raises: ValueError for a vocabulary that lacks classes of the model; NonFiniteCostError.
        """
        targets = self._targets(model, batch)
        own = self._counts(model, targets)
        counts = {key: counts[key] for key in own} if counts else own
        output = model(batch.images, batch.valid_sizes_hw)
        device, config = batch.images.device, self.config
        with without_autocast(device):
            divide = {
                key.rpartition("/")[2]: value
                for key, value in divisors(counts, self.world, device).items()
            }
            found = mask_losses(output, targets, draws, config, divide)
            weighted = (
                ("mask_ce", found.ce, config.ce),
                ("mask_bce", found.mask, config.mask),
                ("mask_dice", found.dice, config.dice),
            )
            terms: dict[str, Tensor] = {}
            for term, values, weight in weighted:
                terms |= keyed(self.name, term, values, weight, len(output.layers))
            return usable(terms, (matching.complaint for matching in found.matchings))


class MaskPrediction(NamedTuple):
    """Class probabilities (`no object` last) and mask logits of the queries, at the asked size."""

    class_probs: Float[Tensor, "q k1"]
    masks: FullSizeMasks


@torch.no_grad()
def predict(
    model: MaskFormer, image: Float[Tensor, "3 h w"], out_size_hw: tuple[int, int]
) -> MaskPrediction:
    """What the queries of the last prediction see in one RGB image in 0..255."""
    device = next(model.head.parameters()).device
    output = model(image[None].to(device))
    last = output.layers[-1]
    logits = torch.einsum(
        "qc,chw->qhw", last.mask_embeddings[0].float(), output.mask_features[0].float()
    )
    masks = FullSizeMasks(
        logits,
        canvas_hw=output.canvas_hw,
        valid_hw=(image.shape[1], image.shape[2]),
        out_hw=out_size_hw,
    )
    return MaskPrediction(last.class_logits[0].float().softmax(-1), masks)


def read_class_names(lines: Sequence[str]) -> tuple[str, ...]:
    """Class names of a list with one per line; empty lines and lines after `#` are skipped.

    Raises: ValueError where a name comes twice or there is none.
    """
    names = [line.partition("#")[0].strip() for line in lines]
    names = [name for name in names if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise ValueError(
            f"read_class_names: a list must have each name once; got {len(names)} names, more "
            f"than once: {', '.join(twice[:5]) or 'none'}. Write one name per line."
        )
    return tuple(names)
