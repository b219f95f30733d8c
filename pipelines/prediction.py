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
    """The classes of all shards that are here, each once; of those for boxes, the things."""
    data = config.data
    is_thing: dict[str, bool] = {}
    for folder in map(Path, data.segmentation.shards):
        is_thing |= _classes(folder)
    for folder in map(Path, data.detection.shards if data.detection.batch_size else ()):
        things = [name for name, thing in _classes(folder).items() if thing]
        is_thing |= {name: True for name in things if name not in is_thing}
    if not is_thing:
        return None
    return Vocabulary(names=tuple(is_thing), is_thing=tuple(is_thing.values()))


def _classes(folder: Path) -> dict[str, bool]:
    """The classes of a folder and which are things; none where it is not here."""
    if not (folder / MANIFEST_NAME).is_file():
        return {}
    manifest = read_manifest(folder)
    return dict(zip(manifest.names, manifest.is_thing, strict=True))
