import json

import pytest

from pipelines.errors import CheckpointError, ConfigError
from pipelines.finetuning.start import find_start
from xdecoder.openseed.config import small
from xdecoder.pretrained import settings_document


def test_a_run_brings_its_model_and_how_it_was_trained(tiny_run, tiny_config):
    start = find_start(str(tiny_run))
    assert start.model == tiny_config.model
    assert start.run == tiny_config


def test_a_name_says_which_file_to_get_and_how_to_convert_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"xdecoder_focalt_last.pt from https://huggingface.co.*pipelines.convert.*focal_t`",
    ):
        find_start("focal_t")


def test_a_converted_folder_brings_its_model_only(tmp_path, tiny_run, tiny_config):
    checkpoint = next(tiny_run.glob("checkpoints/step_*"))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(checkpoint / name)
    start = find_start(str(tmp_path))
    assert start.run is None
    assert start.model == tiny_config.model


def test_a_model_of_another_family_is_refused(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"kind": "mask_former", "model": {}}))
    with pytest.raises(ConfigError, match=r"an X-Decoder or an OpenSeeD; .* holds 'mask_former'"):
        find_start(str(tmp_path))


def test_a_converted_openseed_is_a_start(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps(settings_document(small())))
    assert find_start(str(tmp_path)).model == small()


def test_nothing_at_all_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"must be a run folder or a checkpoint folder"):
        find_start(str(tmp_path))
