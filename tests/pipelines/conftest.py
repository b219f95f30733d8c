"""A folder of scenes, a tiny model, and a run folder with one checkpoint, each made once."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.config import RunConfig
from pipelines.engine.checkpoint_files import CheckpointFolders, write_tensors
from pipelines.overrides import to_json
from pipelines.prediction import prediction_of_run
from pipelines.recipes import RECIPES
from pipelines.scenes.dataset import ScenesRequest, write_scenes
from xdecoder.build import build_model
from xdecoder.model import XDecoder
from xdecoder.openseed.build import build_openseed
from xdecoder.pretrained import settings_document

SCENES_HW = (48, 80)


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scenes of each split in COCO's layout."""
    root = tmp_path_factory.mktemp("scenes") / "root"
    request = ScenesRequest(num_train=5, num_val=5, num_zeroshot=5, size_hw=SCENES_HW)
    write_scenes(request, root)
    return root


@pytest.fixture(scope="session")
def tiny_config(scenes_root: Path) -> RunConfig:
    """The recipe of the scenes with a random backbone, at the size of `scenes_root`."""
    config = RECIPES["scenes"]()
    backbone = dataclasses.replace(config.model.backbone, weights="random")
    data = dataclasses.replace(
        config.data,
        segmentation=dataclasses.replace(config.data.segmentation, size_hw=SCENES_HW),
        image_text=dataclasses.replace(config.data.image_text, size_hw=SCENES_HW),
    )
    return dataclasses.replace(
        config,
        data=data,
        model=dataclasses.replace(config.model, backbone=backbone),
        evaluation=dataclasses.replace(config.evaluation, root=str(scenes_root)),
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config: RunConfig) -> XDecoder:
    """An untrained model in evaluation mode."""
    torch.manual_seed(0)
    return build_model(tiny_config.model).eval()


@pytest.fixture(scope="session")
def tiny_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: RunConfig, tiny_model: XDecoder
) -> Path:
    """A run folder with one checkpoint, two starts in its metrics, and events."""
    folder = _checkpointed(tmp_path_factory.mktemp("runs") / "tiny", tiny_config, tiny_model)
    (folder / "config.resolved.json").write_text(json.dumps(to_json(tiny_config)))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.x", "device": "cpu"}))
    _write_lines(folder / "metrics.jsonl", [_row(step) for step in range(1, 8)])
    starts = [{"time": 10.0 + 5 * n, "event": "start", "restart": n, "step": 3 * n} for n in (0, 1)]
    _write_lines(folder / "events.jsonl", starts)
    return folder


@pytest.fixture(scope="session")
def boxes_config(scenes_root: Path) -> RunConfig:
    """The recipe of an OpenSeeD on the scenes with a random backbone, at their size."""
    config = RECIPES["openseed_scenes"]()
    segmentation = dataclasses.replace(config.data.segmentation, size_hw=SCENES_HW)
    backbone = dataclasses.replace(config.model.backbone, weights="random")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, segmentation=segmentation),
        model=dataclasses.replace(config.model, backbone=backbone),
        evaluation=dataclasses.replace(config.evaluation, root=str(scenes_root)),
    )


@pytest.fixture(scope="session")
def boxes_run(tmp_path_factory: pytest.TempPathFactory, boxes_config: RunConfig) -> Path:
    """A run folder with one checkpoint of an untrained OpenSeeD."""
    torch.manual_seed(0)
    model = build_openseed(boxes_config.model)
    return _checkpointed(tmp_path_factory.mktemp("runs") / "boxes", boxes_config, model)


@pytest.fixture(scope="session")
def vqa_root(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path) -> Path:
    """Thirty questions about ten scenes in VQA's layout."""
    root = tmp_path_factory.mktemp("vqa")
    for split, folder in (("train", "train2014"), ("val", "val2014")):
        (root / folder).mkdir()
        images = sorted((scenes_root / "images" / split).glob("*.jpg"))
        questions, annotations = [], []
        for number in range(30):
            image_id = number % len(images)
            name = f"COCO_{folder}_{image_id:012d}.jpg"
            if number < len(images):
                (root / folder / name).symlink_to(images[image_id])
            people = ["yes"] * 8 + ["no"] * 2 if number < 20 else ["two"] * 6 + ["red"] * 4
            questions.append(
                {"question_id": number, "image_id": image_id, "question": f"is it number {number}?"}
            )
            annotations.append(
                {"question_id": number, "answers": [{"answer": each} for each in people]}
            )
        names = (f"v2_OpenEnded_mscoco_{folder}_questions", f"v2_mscoco_{folder}_annotations")
        (root / f"{names[0]}.json").write_text(json.dumps({"questions": questions}))
        (root / f"{names[1]}.json").write_text(json.dumps({"annotations": annotations}))
    return root


def _checkpointed(folder: Path, config: RunConfig, model: nn.Module) -> Path:
    folders = CheckpointFolders(folder / "checkpoints")
    writing = folders.writing(7)
    folders.begin(7)
    write_tensors(writing / "model.safetensors", model.state_dict())
    (writing / "state.json").write_text(json.dumps({"step": 7}))
    (writing / "config.resolved.json").write_text(json.dumps(to_json(config)))
    document = settings_document(config.model, prediction_of_run(config))
    (writing / "config.json").write_text(json.dumps(document))
    folders.commit(7)
    return folder


def _row(step: int) -> dict[str, float]:
    noise = float(np.sin(step))
    return {
        "step": step,
        "loss": 9.0 / step,
        "loss/segmentation": 6.0 / step,
        "loss/image_text": 3.0 / step,
        "segmentation/mask_ce": 6.0 / step + 0.1 * noise,
        "learning_rate": 1e-3,
        "gradient_norm": 2.0 + noise,
        "restart": int(step > 3),
    }


def _write_lines(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
