"""What fine-tuning starts from: a run of ours, converted weights, or the name of published ones."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import RunConfig
from pipelines.engine.checkpoint import find_checkpoint, read_config
from pipelines.errors import CheckpointError, ConfigError
from xdecoder.config import ModelConfig
from xdecoder.openseed.config import OpenSeeDConfig
from xdecoder.pretrained import SETTINGS, WEIGHTS
from xdecoder.settings import SettingsError, from_json

_PUBLISHED = "https://huggingface.co/xdecoder/X-Decoder"
# file names of published weights, by the names that people call them
NAMES = {
    "focal_t": "xdecoder_focalt_last.pt",
    "focal_t_novg": "xdecoder_focalt_last_novg.pt",
    "focal_t_openseg": "xdecoder_focalt_best_openseg.pt",
    "focal_l": "xdecoder_focall_last.pt",
    "focal_l_bestseg": "xdecoder_focall_bestseg.pt",
}
DEFAULT_NAME = "focal_t"
WEIGHTS_FOLDER = Path("weights")
# families with an open vocabulary, by the kind of their folders
_DECLARED: dict[str, type[ModelConfig] | type[OpenSeeDConfig]] = {
    "xdecoder": ModelConfig,
    "openseed": OpenSeeDConfig,
}


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights to start from; run: how they were trained, None for converted ones."""

    folder: Path
    model: ModelConfig | OpenSeeDConfig
    run: RunConfig | None = None


def find_start(text: str) -> Start:
    """The start that `--init-from` means.

    Raises:
        CheckpointError: there is nothing of the kind; the message says how to get it.
        ConfigError: it is a model of another family.
    """
    folder = Path(text)
    if text in NAMES and not folder.is_dir():
        folder = WEIGHTS_FOLDER / text
        if not (folder / WEIGHTS).is_file():
            file = NAMES[text]
            raise CheckpointError(
                f"finetune: --init-from {text} looks for {folder}/{WEIGHTS}, which is not there. "
                f"Get {file} from {_PUBLISHED} and run `python -m pipelines.convert {file} "
                f"{folder}`, or name a run of your own."
            )
    if (folder / WEIGHTS).is_file() and not (folder / "state.json").is_file():
        return Start(folder=folder, model=_converted_model(folder))
    checkpoint = find_checkpoint(folder)
    run = read_config(checkpoint / "config.resolved.json")
    return Start(folder=checkpoint, model=_open(run.model, folder), run=run)


def _converted_model(folder: Path) -> ModelConfig | OpenSeeDConfig:
    document = json.loads((folder / SETTINGS).read_text())
    if document.get("kind") not in _DECLARED:
        return _open(document.get("kind"), folder)
    try:
        return from_json(_DECLARED[document["kind"]], document["model"], "model")
    except SettingsError as error:
        raise CheckpointError(f"finetune: {folder / SETTINGS}: {error}") from error


def _open(model: object, folder: Path) -> ModelConfig | OpenSeeDConfig:
    if isinstance(model, ModelConfig | OpenSeeDConfig):
        return model
    found = model if isinstance(model, str) else type(model).__name__
    raise ConfigError(
        f"finetune: --init-from must be an X-Decoder or an OpenSeeD; {folder} holds {found!r}. "
        "Models of a fixed list of classes are trained with `python -m pipelines.pretrain "
        "--recipe ...`."
    )
