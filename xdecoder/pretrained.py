"""A trained model from a folder: a run, one of its checkpoints, or converted weights.

    config.json           {"kind": which family, "model": its settings, "prediction": how to ask it}
    model.safetensors     the weights          ema.safetensors   their average, where one was kept

A run folder has checkpoints/step_*/ of this layout; its newest complete one is read.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from xdecoder.build import build_model
from xdecoder.config import ModelConfig
from xdecoder.convert.rules import CheckpointError
from xdecoder.lora import merged
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import MaskFormerConfig
from xdecoder.mask_former.model import MaskFormer
from xdecoder.model import XDecoder
from xdecoder.openseed.build import build_openseed
from xdecoder.openseed.config import OpenSeeDConfig
from xdecoder.openseed.model import OpenSeeD
from xdecoder.prediction import (
    PredictionConfig,
    mask_former_prediction,
    openseed_prediction,
    released_prediction,
)
from xdecoder.settings import SettingsError, from_json, to_json

SETTINGS, WEIGHTS, AVERAGE = "config.json", "model.safetensors", "ema.safetensors"
KINDS = {"ModelConfig": "xdecoder", "MaskFormerConfig": "mask_former", "OpenSeeDConfig": "openseed"}
Settings = ModelConfig | MaskFormerConfig | OpenSeeDConfig
Pretrained = XDecoder | MaskFormer | OpenSeeD
PretrainedT = TypeVar("PretrainedT", bound=Pretrained)


def settings_document(
    config: Settings, prediction: PredictionConfig | None = None
) -> dict[str, Any]:
    """What `config.json` holds; without `prediction`, the model is asked as released ones are."""
    document = {"kind": KINDS[type(config).__name__], "model": to_json(config)}
    return document if prediction is None else document | {"prediction": to_json(prediction)}


def load_pretrained(path: str | Path, *, ema: bool = True) -> Pretrained:
    """The model of a folder, in evaluation mode on the CPU.

    ema: its averaged weights, where they were kept.

    Raises:
        CheckpointError: no such folder, or it lacks a file, or a file is damaged or does not fit.
    """
    folder = find_weights(Path(path))
    model, prediction = _model_of(folder)
    weights = _read_weights(folder / WEIGHTS)
    if ema and (folder / AVERAGE).is_file():
        weights |= _read_weights(folder / AVERAGE)
    _load(model, merged(weights), folder)
    model.prediction = prediction
    return model.eval()


def expected(model: Pretrained, kind: type[PretrainedT], path: str | Path) -> PretrainedT:
    """The model, if it is of this kind.

    Raises:
        CheckpointError: it is of another one.
    """
    if isinstance(model, kind):
        return model
    found = type(model).__name__
    raise CheckpointError(
        f"from_pretrained: {path} must hold a model of the kind {kind.__name__}; it holds a "
        f"{found}. Call {found}.from_pretrained."
    )


def find_weights(path: Path) -> Path:
    """The folder with weights that a path means: itself, or the newest complete one of a run.

    Raises:
        CheckpointError: there is none.
    """
    if (path / WEIGHTS).is_file():
        return path.resolve()
    # COMPLETE is written last; see pipelines/engine/checkpoint_files.py
    steps = [each.parent for each in path.glob("checkpoints/step_*/COMPLETE")]
    if not steps:
        raise CheckpointError(
            f"from_pretrained: {path} must be a run with a complete checkpoint, a checkpoint, or "
            f"a folder with {SETTINGS} and {WEIGHTS}; it is none of them. Train first, or convert "
            "published weights with `python -m pipelines.convert`."
        )
    return max(steps, key=lambda folder: folder.name).resolve()


def weights_hash(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that change with any name, shape or value of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _model_of(folder: Path) -> tuple[Pretrained, PredictionConfig]:
    path = folder / SETTINGS
    if not path.is_file():
        raise CheckpointError(
            f"from_pretrained: {folder} must hold {SETTINGS} beside {WEIGHTS}; it does not. "
            "Checkpoints written before there was one: continue the run for a step, or write it "
            "with xdecoder.pretrained.settings_document."
        )
    document = json.loads(path.read_text())
    kind = document.get("kind")
    try:
        if kind == "xdecoder":
            model: Pretrained = build_model(
                from_json(ModelConfig, document["model"], "model"), has_initial_weights=False
            )
            prediction = released_prediction()
        elif kind == "mask_former":
            config = from_json(MaskFormerConfig, document["model"], "model")
            model = build_mask_former(config, has_initial_weights=False)
            prediction = mask_former_prediction(keeps_faint_pixels=config.decoder.kind == "detr")
        elif kind == "openseed":
            model = build_openseed(
                from_json(OpenSeeDConfig, document["model"], "model"), has_initial_weights=False
            )
            prediction = openseed_prediction()
        else:
            raise CheckpointError(
                f"from_pretrained: {path} must say kind {', '.join(KINDS.values())}; got {kind!r}."
            )
        if "prediction" in document:
            prediction = from_json(PredictionConfig, document["prediction"], "prediction")
    except SettingsError as error:
        raise CheckpointError(f"from_pretrained: {path}: {error}") from error
    return model, prediction


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"from_pretrained: {path} must be a safetensors file; got {error}. Copy it again."
        ) from error


def _load(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"from_pretrained: the weights in {folder} must be those of the model that "
            f"{SETTINGS} describes; {error}"
        ) from error
