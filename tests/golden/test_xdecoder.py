"""Every recorded file of the official X-Decoder, by the checks of the command line."""

import json
from dataclasses import replace

import pytest
import torch
import xdecoder_check
import xdecoder_training
from safetensors.torch import load_file, save_file
from xdecoder_recording import Case

from xdecoder.build import build_model
from xdecoder.config import released
from xdecoder.convert.rules import convert
from xdecoder.convert.xdecoder import FOCAL, model_rules
from xdecoder.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def folder(shared_dir):
    return shared_dir / "golden" / "xdecoder" / "case_a"


@pytest.fixture(scope="session")
def case(folder):
    return Case(folder)


@pytest.mark.parametrize("name", sorted(xdecoder_check.CHECKS))
def test_a_recorded_file_is_reproduced_on_both_sets_of_operators(case, name):
    line = xdecoder_check.check_file(case, name)
    assert line.is_good, line.text()
    assert list(line.runs) == ["reference", "fused"]


def test_there_is_a_check_for_every_recorded_file(folder):
    names = {path.stem for path in folder.glob("*.safetensors")}
    assert names - {"weights"} == xdecoder_check.CHECKS.keys()


# in float64 what is left is the rounding of the recording to float32
@pytest.mark.parametrize(
    "name", ["full_eval_seg", "sub_pixel_decoder_fpn", "sub_pixel_decoder_deform"]
)
def test_in_double_precision_only_the_recordings_rounding_is_left(folder, name):
    case = Case(folder, dtype=torch.float64, tolerance=1e-6)
    line = xdecoder_check.check_file(case, name, columns=["reference"])
    assert line.is_good, line.text()


@pytest.mark.parametrize(
    "switch",
    ["normalises_locally", "cuts_noun_gradient", "shows_padded_tokens"],
)
def test_without_a_switch_of_the_released_program_the_step_is_another(case, switch, monkeypatch):
    with_all = xdecoder_training.loss_config
    monkeypatch.setattr(
        xdecoder_training,
        "loss_config",
        lambda case: replace(
            with_all(case), released=replace(with_all(case).released, **{switch: False})
        ),
    )
    line = xdecoder_check.check_file(case, "full_train_seg", columns=["reference"])
    assert line.run.worst_ratio > 10, line.text()


def test_a_tensor_that_nothing_compares_is_a_failure(folder, tmp_path):
    for name in ("config.json", "sub_posenc.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    tensors = load_file(tmp_path / "sub_posenc.safetensors")
    save_file(tensors | {"out.more": torch.ones(2)}, tmp_path / "sub_posenc.safetensors")
    line = xdecoder_check.check_file(Case(tmp_path), "sub_posenc")
    assert not line.is_good
    assert "out.more: NOT COMPARED" in line.text()


def test_a_file_without_a_check_is_a_failure(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file({"out.x": torch.ones(2)}, tmp_path / "sub_unheard.safetensors")
    (line,) = xdecoder_check.check(tmp_path)
    assert line.text().startswith("FAIL sub_unheard")
    assert "NOT COVERED" in line.text()


def test_a_check_that_breaks_is_a_failure_of_its_line(folder, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file({"in.v": torch.ones(2, 3)}, tmp_path / "sub_contrastive_losses.safetensors")
    (line,) = xdecoder_check.check(tmp_path)
    assert line.text().startswith("FAIL sub_contrastive_losses")
    assert "KeyError: 'in.t'" in line.text()
    assert "Traceback" in capsys.readouterr().err


def test_optimizer_groups_are_those_of_the_official_trainer(shared_dir):
    folder = shared_dir / "specs" / "statedicts"
    recorded = json.loads((folder / "xdecoder_focalt_param_groups.json").read_text())
    shapes = json.loads((folder / "xdecoder_focalt_statedict.json").read_text())
    theirs = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with torch.device("meta"):
        model = build_model(released("focal_t"), has_initial_weights=False)
    rates = xdecoder_training.official_rates(
        model,
        convert(theirs, model_rules(FOCAL)),
        multipliers={"backbone": 0.1, "lang_encoder": 0.1},
        decay=0.05,
        norm_decay=0.0,
        table_decay=0.0,
    )
    assert {key: list(value) for key, value in rates.items()} == recorded["params"]


def test_tokenizer_is_the_official_one(folder):
    recorded = json.loads((folder.parent / "tokenizer.json").read_text())
    whole, cut = Tokenizer(context_length=77), Tokenizer(context_length=24, num_merges=510)
    for sample in recorded["samples"]:
        assert whole([sample["text"]], length=77)[0].tolist() == sample["ids77_full"]
        assert cut([sample["text"]], length=24)[0].tolist() == sample["ids24_merges510"]
