import dataclasses
from pathlib import Path

from pipelines.config import RunConfig
from pipelines.evaluation.options import EvaluationOptions, options_of_run
from pipelines.evaluation.provenance import (
    checkpoint_facts,
    config_hash,
    file_hashes,
    protocols,
    tool_versions,
)

OPTIONS = EvaluationOptions(size_hw=(48, 80), text_size_hw=(32, 64))


def test_what_changes_a_number_changes_its_protocol() -> None:
    base = protocols(OPTIONS)
    changes = {
        "pq": {"object_threshold": 0.8},
        "captioning": {"max_caption_tokens": 7},
        "retrieval": {"retrieval_pool": 1000},
        "refer": {"size_hw": (96, 128)},
        "caption_token_accuracy": {"text_size_hw": (96, 128)},
    }
    for name, change in changes.items():
        assert protocols(dataclasses.replace(OPTIONS, **change))[name] != base[name]


def test_the_hash_of_a_file_follows_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "truth.json"
    path.write_text("1")
    first = file_hashes([path], root=tmp_path)
    path.write_text("2")
    assert list(first) == ["a/truth.json"]
    assert file_hashes([path], root=tmp_path) != first


def test_the_hash_of_a_configuration_follows_every_value(tiny_config: RunConfig) -> None:
    other = dataclasses.replace(tiny_config, seed=tiny_config.seed + 1)
    assert config_hash(tiny_config) == config_hash(dataclasses.replace(tiny_config))
    assert config_hash(tiny_config) != config_hash(other)


def test_a_checkpoint_is_known_by_step_and_hash(tiny_run: Path) -> None:
    facts = checkpoint_facts(tiny_run / "checkpoints" / "step_00000007")
    assert facts["step"] == 7
    assert len(facts["sha256"]) == 64


def test_images_are_seen_as_in_training(tiny_config: RunConfig) -> None:
    assert options_of_run(tiny_config).size_hw == tiny_config.data.segmentation.size_hw


def test_versions_name_the_tools() -> None:
    assert {"python", "torch", "pycocotools", "pycocoevalcap"} <= set(tool_versions())
