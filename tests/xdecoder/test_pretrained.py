"""Models from folders of every kind that there is."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from xdecoder.batch import Vocabulary
from xdecoder.convert.rules import CheckpointError
from xdecoder.images import ImageFit
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import MaskFormerConfig, QueryDecoderConfig, ResNetConfig
from xdecoder.mask_former.model import MaskFormer
from xdecoder.model import XDecoder
from xdecoder.openseed.build import build_openseed
from xdecoder.openseed.config import small
from xdecoder.openseed.model import OpenSeeD
from xdecoder.prediction import PredictionConfig, openseed_prediction, released_prediction
from xdecoder.pretrained import load_pretrained, settings_document, weights_hash
from xdecoder.tasks.open_vocabulary import Semantic

PREDICTION = PredictionConfig(
    segmentation=ImageFit(size_hw=(48, 80)),
    vocabulary=Vocabulary.of("ball", "sky", stuff=("sky",)),
    mask_resize="bicubic_antialias",
)


def write(folder, model, config, prediction=PREDICTION):
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings_document(config, prediction)))
    return folder


@pytest.fixture
def folder(tmp_path, small_model, small_config):
    return write(tmp_path / "converted", small_model, small_config)


def test_three_lines_give_an_answer(folder):
    model = XDecoder.from_pretrained(folder)
    answer = model.predict(Image.new("RGB", (60, 40), "red"), Semantic())
    assert answer.class_ids.shape == (40, 60)
    assert not model.training


def test_weights_and_the_way_of_asking_come_back(folder, small_model):
    model = XDecoder.from_pretrained(str(folder))
    assert model.prediction == PREDICTION
    assert weights_hash(model) == weights_hash(small_model)
    with torch.no_grad():
        model.logit_scale += 1e-3
    assert weights_hash(model) != weights_hash(small_model)


def test_without_it_the_model_is_asked_as_the_released_one(tmp_path, small_model, small_config):
    folder = write(tmp_path / "bare", small_model, small_config, None)
    assert XDecoder.from_pretrained(folder).prediction == released_prediction()


def test_a_run_means_its_newest_complete_checkpoint(tmp_path, small_model, small_config):
    for step, is_complete in ((1, True), (2, True), (3, False)):
        with torch.no_grad():
            small_model.logit_scale.fill_(step)
        name = f"step_{step:08d}"
        written = write(tmp_path / "run" / "checkpoints" / name, small_model, small_config)
        if is_complete:
            (written / "COMPLETE").write_text("")
    assert XDecoder.from_pretrained(tmp_path / "run").logit_scale.item() == 2
    one = tmp_path / "run" / "checkpoints" / "step_00000001"
    assert XDecoder.from_pretrained(one).logit_scale.item() == 1


def test_averaged_weights_are_the_default(folder, small_model):
    average = {"logit_scale": torch.full((1,), 7.0)}
    save_file(average, folder / "ema.safetensors")
    assert XDecoder.from_pretrained(folder).logit_scale.item() == 7
    plain = XDecoder.from_pretrained(folder, ema=False).logit_scale
    assert torch.equal(plain, small_model.logit_scale)


def test_mask_former_loads_in_the_same_way(tmp_path):
    config = MaskFormerConfig(
        num_classes=2,
        class_names=("ball", "sky"),
        is_thing=(True, False),
        backbone=ResNetConfig(depths=(1, 1, 1, 1)),
        decoder=QueryDecoderConfig(dim=32, num_layers=1, num_heads=4, ffn_dim=32, num_queries=4),
        pixel_dim=32,
        mask_dim=32,
    )
    model = build_mask_former(config)
    folder = write(tmp_path / "closed", model, config)
    assert weights_hash(MaskFormer.from_pretrained(folder)) == weights_hash(model)
    assert isinstance(load_pretrained(folder), MaskFormer)
    with pytest.raises(CheckpointError, match=r"it holds a MaskFormer. Call MaskFormer\.from_pre"):
        XDecoder.from_pretrained(folder)


def test_openseed_loads_in_the_same_way(tmp_path, folder):
    config = small()
    backbone = replace(config.backbone, name="test_efficientnet", weights="random")
    config = replace(config, backbone=backbone)
    model = build_openseed(config)
    own = PredictionConfig(templates=("the {}.",), object_threshold=0.3)
    made = write(tmp_path / "boxes", model, config, prediction=None)
    loaded = OpenSeeD.from_pretrained(made)
    assert weights_hash(loaded) == weights_hash(model)
    assert loaded.prediction == openseed_prediction()
    assert (loaded.prediction.object_threshold, len(loaded.prediction.templates)) == (0.25, 81)
    (made / "config.json").write_text(json.dumps(settings_document(config, own)))
    assert OpenSeeD.from_pretrained(made).prediction == own
    with pytest.raises(CheckpointError, match=r"it holds a OpenSeeD\. Call OpenSeeD\.from_pre"):
        XDecoder.from_pretrained(made)
    with pytest.raises(CheckpointError, match=r"must hold a model of the kind OpenSeeD; it holds"):
        OpenSeeD.from_pretrained(folder)


def test_what_is_no_model_is_refused(tmp_path, folder):
    with pytest.raises(CheckpointError, match="must be a run with a complete checkpoint"):
        XDecoder.from_pretrained(tmp_path / "nowhere")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"must hold config\.json beside model\.safetensors"):
        XDecoder.from_pretrained(folder)


def test_damaged_weights_are_refused(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors must be a safetensors file"):
        XDecoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "yolo"}, "must say kind xdecoder, mask_former, openseed; got 'yolo'"),
        ({"model": {"dime": 32}}, r"there is no 'model\.dime'; the nearest key is 'model\.dim'"),
        ({"model": {"dim": 64}}, "must be those of the model that config.json describes"),
        ({"prediction": {"templates": 3}}, "prediction.templates must be a list"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, change, message):
    document = json.loads((folder / "config.json").read_text())
    if "dim" in change.get("model", {}):
        change = {"model": document["model"] | change["model"]}
    (folder / "config.json").write_text(json.dumps(document | change))
    with pytest.raises(CheckpointError, match=message):
        XDecoder.from_pretrained(folder)
