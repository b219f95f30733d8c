"""The predictor of a model, whichever family it is of."""

from collections.abc import Sequence

from pipelines.evaluation.box_predictor import BoxPredictor
from pipelines.evaluation.mask_predictor import MaskPredictor
from pipelines.evaluation.model_predictor import ModelPredictor
from pipelines.evaluation.options import EvaluationOptions
from pipelines.families import TrainedModel
from xdecoder.mask_former.model import MaskFormer
from xdecoder.openseed.model import OpenSeeD


def predictor_of(
    model: TrainedModel, *, options: EvaluationOptions
) -> ModelPredictor | MaskPredictor | BoxPredictor:
    """What evaluation and prediction ask."""
    if isinstance(model, MaskFormer):
        return MaskPredictor(model, options=options)
    if isinstance(model, OpenSeeD):
        return BoxPredictor(model, options=options)
    return ModelPredictor(model, options=options)


def stages_of(model: TrainedModel, every: Sequence[str]) -> list[str]:
    """Of all stages of an evaluation, those that ask only what the model can answer."""
    if isinstance(model, MaskFormer):
        return ["segmentation"]
    if isinstance(model, OpenSeeD):
        return ["segmentation", "referring"]
    return [name for name in every if name != "answering" or model.answers]
