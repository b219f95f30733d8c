"""Weights that a run starts from: of another run, or of a converted file."""

import json
import logging
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from pipelines.convert import INITIAL
from pipelines.engine.checkpoint import find_checkpoint, load_weights
from pipelines.errors import CheckpointError
from xdecoder.convert.released import incomplete_parts
from xdecoder.pretrained import SETTINGS, WEIGHTS

# parts that fine-tuning adds to a model
_NEW_PARTS = ("answer_head.",)
_log = logging.getLogger(__name__)


def load_initial_weights(model: nn.Module, path: Path) -> None:
    """Copy the weights of a run, a checkpoint or a converted folder into a model.

    Initial weights (an image and a text trunk, as UniCL's) fill the parts that they have; all
    others must fill the model but for an answer head, which may start at random.

    Raises:
        CheckpointError: no weights are there, or they are those of another model.
    """
    kind = _kind_of_converted(path)
    if kind != INITIAL:
        load_weights(model, path if kind else find_checkpoint(path), new_parts=_NEW_PARTS)
        return
    weights = load_file(path / WEIGHTS)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    strange = [
        f"{name} {list(tensor.shape)} for {list(wanted.get(name, ()))}"
        for name, tensor in weights.items()
        if wanted.get(name) != tuple(tensor.shape)
    ]
    missing = sorted(wanted.keys() - weights.keys())
    incomplete = incomplete_parts(weights, missing)
    if strange or incomplete:
        raise CheckpointError(
            f"initial weights: {path} must be of the model's own trunks; {len(strange)} are not: "
            f"{', '.join(strange[:5]) or 'none'}; missing in a part: "
            f"{', '.join(incomplete[:5]) or 'none'}. Set model.backbone.name and model.text to "
            f"those in {path / SETTINGS}."
        )
    model.load_state_dict(weights, strict=False)
    _log.info("%s: %d weights; %d others start at random", path, len(weights), len(missing))


def _kind_of_converted(path: Path) -> str:
    """What a converted folder holds; nothing for runs and checkpoints."""
    is_converted = (path / WEIGHTS).is_file() and not (path / "state.json").is_file()
    if not is_converted or not (path / SETTINGS).is_file():
        return ""
    return str(json.loads((path / SETTINGS).read_text()).get("kind", ""))
