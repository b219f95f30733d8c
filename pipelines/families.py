"""The model and the tasks that a configuration asks for: the one place that knows every family."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig
from pipelines.data.shards import MANIFEST_NAME, Manifest, read_manifest
from pipelines.errors import ConfigError
from pipelines.vqa import normal_answer
from xdecoder.build import build_model
from xdecoder.config import ModelConfig
from xdecoder.losses.world import World
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import MaskFormerConfig, MaskLossConfig
from xdecoder.mask_former.model import MaskFormer
from xdecoder.mask_former.task import MaskTask
from xdecoder.model import XDecoder
from xdecoder.openseed.build import build_openseed
from xdecoder.openseed.config import BoxLossConfig, OpenSeeDConfig
from xdecoder.openseed.model import OpenSeeD
from xdecoder.openseed.task import BoxedSegmentationTask, DetectionTask
from xdecoder.tasks import build_tasks
from xdecoder.tasks.answering import AnsweringTask
from xdecoder.tasks.base import Task

_log = logging.getLogger(__name__)
TrainedModel = XDecoder | MaskFormer | OpenSeeD


def build_model_of(
    config: ModelConfig | MaskFormerConfig | OpenSeeDConfig, *, has_initial_weights: bool = True
) -> TrainedModel:
    """The model of the settings, whichever family they are of.

    has_initial_weights: load the pretrained trunk that they name.
    """
    if isinstance(config, MaskFormerConfig):
        return build_mask_former(config, has_initial_weights=has_initial_weights)
    if isinstance(config, OpenSeeDConfig):
        return build_openseed(config, has_initial_weights=has_initial_weights)
    return build_model(config, has_initial_weights=has_initial_weights)


def build_tasks_of(config: RunConfig) -> tuple[Task[Any, Any], ...]:
    """The tasks that train the model of a run."""
    if isinstance(config.losses, MaskLossConfig):
        assert isinstance(config.model, MaskFormerConfig)
        names = config.model.class_names
        return (MaskTask(config=config.losses, world=World(), class_names=names),)
    if isinstance(config.losses, BoxLossConfig):
        losses, templates = config.losses, config.losses.templates
        return (
            BoxedSegmentationTask(config=losses, templates=templates, world=World()),
            DetectionTask(config=losses, templates=templates, world=World()),
        )
    assert isinstance(config.model, ModelConfig)
    if config.model.answers:
        return (AnsweringTask(normal_answer=normal_answer, world=World()),)
    return build_tasks(config.losses)


def with_classes_of_data(config: RunConfig) -> RunConfig:
    """The run with the class list of its shards, where its model has a list and none is set.

    A run so resolved says what its class ids mean, wherever its shards are later.

    Raises:
        ConfigError: folders of shards with different lists, or a list with other names.
    """
    model = config.model
    if not isinstance(model, MaskFormerConfig) or (model.class_names and model.is_thing):
        return config
    folders = [Path(folder) for folder in config.data.segmentation.shards]
    # what is missing is reported where it is read
    if not folders or not all((folder / MANIFEST_NAME).is_file() for folder in folders):
        return config
    manifests = [read_manifest(folder) for folder in folders]
    is_thing = _is_thing_of(manifests, config.data.segmentation.shards)
    names = model.class_names or _trained_names(is_thing, config)
    missing = [name for name in names if name not in is_thing]
    if missing:
        raise ConfigError(
            f"model.class_names must be among the {len(is_thing)} classes of the shards; "
            f"{len(missing)} are not: {', '.join(missing[:5])}. "
            "`python -m pipelines.prepare stats` lists them."
        )
    if len(names) != model.num_classes:
        _log.info(
            "model.num_classes: %d, as many as the data has; the recipe says %d",
            len(names),
            model.num_classes,
        )
    resolved = replace(
        model,
        num_classes=len(names),
        class_names=names,
        is_thing=tuple(is_thing[name] for name in names),
    )
    return replace(config, model=resolved)


def _is_thing_of(manifests: list[Manifest], folders: tuple[str, ...]) -> dict[str, bool]:
    """What the shards say of each class, in their order."""
    lists = {(manifest.names, manifest.is_thing) for manifest in manifests}
    if len(lists) != 1:
        raise ConfigError(
            "data.segmentation.shards must have one list of classes for a model that has one; "
            f"{', '.join(folders)} have {len(lists)}. Train on one of them, or prepare them with "
            "the same classes."
        )
    names, is_thing = lists.pop()
    return dict(zip(names, is_thing, strict=True))


def _trained_names(is_thing: dict[str, bool], config: RunConfig) -> tuple[str, ...]:
    assert isinstance(config.losses, MaskLossConfig)
    things_only = config.losses.targets == "instance"
    return tuple(name for name, value in is_thing.items() if value or not things_only)
