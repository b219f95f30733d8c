"""How the model of a run wants to be asked: what is saved beside its weights for later."""

from pathlib import Path

from pipelines.config import RunConfig
from pipelines.data.shards import MANIFEST_NAME, read_manifest
from xdecoder.batch import Vocabulary
from xdecoder.images import ImageFit
from xdecoder.mask_former.config import MaskFormerConfig
from xdecoder.openseed.config import BoxLossConfig
from xdecoder.prediction import (
    CLOSED_OBJECT_THRESHOLD,
    SIMILARITY_THRESHOLD,
    PredictionConfig,
)


def prediction_of_run(config: RunConfig) -> PredictionConfig:
    """The image sizes and the names of its training."""
    segmentation = ImageFit(size_hw=config.data.segmentation.size_hw)
    model, losses = config.model, config.losses
    if isinstance(losses, BoxLossConfig):
        return PredictionConfig(
            segmentation=segmentation,
            referring=segmentation,
            templates=losses.templates,
            vocabulary=_trained_names(config),
            object_threshold=SIMILARITY_THRESHOLD,
        )
    closed = model if isinstance(model, MaskFormerConfig) else None
    return PredictionConfig(
        segmentation=segmentation,
        referring=segmentation,
        text=ImageFit(size_hw=config.data.image_text.size_hw),
        vocabulary=_trained_names(config),
        object_threshold=0.4 if closed is None else CLOSED_OBJECT_THRESHOLD,
        keeps_faint_pixels=closed is not None and closed.decoder.kind == "detr",
    )


def _trained_names(config: RunConfig) -> Vocabulary | None:
    """The classes of all shards that are here, each once."""
    is_thing: dict[str, bool] = {}
    for folder in map(Path, config.data.segmentation.shards):
        if (folder / MANIFEST_NAME).is_file():
            manifest = read_manifest(folder)
            is_thing |= dict(zip(manifest.names, manifest.is_thing, strict=True))
    if not is_thing:
        return None
    return Vocabulary(names=tuple(is_thing), is_thing=tuple(is_thing.values()))
