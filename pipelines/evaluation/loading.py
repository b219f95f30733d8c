"""What is evaluated: the model of a run or of converted weights, and how it wants to be asked."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.engine.checkpoint import find_checkpoint, load_model
from pipelines.errors import CheckpointError
from pipelines.evaluation.options import EvaluationOptions, options_of_prediction, options_of_run
from pipelines.evaluation.provenance import config_hash, digest_of_file
from pipelines.families import TrainedModel
from xdecoder.convert.rules import CheckpointError as ModelCheckpointError
from xdecoder.pretrained import SETTINGS, WEIGHTS, load_pretrained


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in evaluation mode, where it is from, and the options that fit it.

    root, split: the data that its run names; empty for converted weights.
    """

    model: TrainedModel
    options: EvaluationOptions
    folder: Path
    config_sha256: str
    root: str = ""
    split: str = "val"


def load_evaluated(path: Path, *, ema: bool) -> Loaded:
    """The model of a run, a checkpoint, or a folder of converted weights.

    Raises:
        CheckpointError: there is none, or it does not fit its own settings.
    """
    if _is_converted(path):
        try:
            model = load_pretrained(path, ema=ema)
        except ModelCheckpointError as error:
            raise CheckpointError(str(error)) from error
        return Loaded(
            model=model,
            options=options_of_prediction(model.prediction),
            folder=path.resolve(),
            config_sha256=digest_of_file(path / SETTINGS),
        )
    folder = find_checkpoint(path)
    model, config = load_model(folder, ema=ema)
    return Loaded(
        model=model,
        options=options_of_run(config),
        folder=folder,
        config_sha256=config_hash(config),
        root=config.evaluation.root,
        split=config.evaluation.split,
    )


def _is_converted(path: Path) -> bool:
    # a checkpoint of a run has the two as well, and says what step it is of
    has_weights = (path / SETTINGS).is_file() and (path / WEIGHTS).is_file()
    return has_weights and not (path / "state.json").is_file()
