"""Files with exactly the names and shapes of the released OpenSeeD, from file to report."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pipelines import convert
from pipelines.errors import CheckpointError
from xdecoder.convert.rules import CheckpointError as NamingError
from xdecoder.mask_former.published import TRUNKS
from xdecoder.openseed.build import build_openseed
from xdecoder.openseed.config import released, small
from xdecoder.openseed.model import OpenSeeD
from xdecoder.prediction import openseed_prediction

# trunk, decoupled, context length, parameters
_MODELS = {
    "openseed_swint_lang": ("swin_t", False, 18, 116_179_263),
    "openseed_swint_lang_o365": ("swin_t", False, 77, 116_209_471),
    "openseed_swint_lang_o365_decouple": ("swin_t", True, 77, 116_235_471),
    "openseed_swinl_lang_decouple": ("swin_l", True, 18, 286_444_137),
}
_HEAD = "sem_seg_head.predictor."


@pytest.fixture
def published(shared_dir):
    """Names, shapes and copies of the released models."""
    path = shared_dir / "specs" / "statedicts" / "openseed_swint_statedict.json"
    return json.loads(path.read_text())["models"]


@pytest.fixture
def file_of(published, tmp_path):
    """A `.pt` file of a released model; one number stands for all of a tensor's, so it is small."""

    def write(name="openseed_swint_lang", change=lambda state: state):
        number = torch.tensor(0.5)
        state = {key: number.expand(shape) for key, shape in published[name]["shapes"].items()}
        path = tmp_path / f"{name}.pt"
        torch.save(change(state), path)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "prefix"),
    [*((name, "") for name in sorted(_MODELS)), ("openseed_swint_lang_o365_decouple", "model.")],
)
def test_a_released_file_fills_the_model_whose_sizes_it_has(file_of, published, name, prefix):
    trunk, is_decoupled, context_length, num_parameters = _MODELS[name]
    path = file_of(name, lambda state: {prefix + key: value for key, value in state.items()})
    converted = convert.read(path)
    convert.check(converted)
    expected = released(TRUNKS[trunk], is_decoupled=is_decoupled, context_length=context_length)
    assert converted.config == expected
    assert sum(value.numel() for value in converted.state.values()) == num_parameters
    num_keys = len(published[name]["shapes"])
    dropped = num_keys - len(converted.state)
    # text projection, class projection and name projection lie the other way round; the scale of
    # similarities lacks an axis
    assert convert.report_lines(converted)[-1] == (
        f"total: {dropped} dropped, {num_keys - dropped - 4} matched, 4 reshaped, 0 missing"
    )
    reasons = [reason for _, reason, change in converted.report if change == "drop"]
    assert all(reason.startswith(("a copy of", "derived: ")) for reason in reasons), reasons


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("mask_embed.layers.1.weight", (256, 300), r"heads\.mask_mlp\.layers\.1\.weight \[256, 3"),
        (
            "lang_encoder.lang_proj",
            (512, 500),
            r"name_projection\.weight \[256, 512\] for \[256, 500\]",
        ),
    ],
)
def test_a_weight_of_another_shape_is_named_and_not_skipped(file_of, key, shape, words):
    def bent(state):
        return state | {_HEAD + key: torch.tensor(0.5).expand(shape)}

    with pytest.raises(CheckpointError, match=f"{words}"):
        convert.check(convert.read(file_of(change=bent)))


def test_an_unknown_name_and_a_lost_weight_are_refused(file_of):
    with pytest.raises(NamingError, match=r"predictor\.teacher \[3\]: no rule"):
        convert.read(file_of(change=lambda state: state | {_HEAD + "teacher": torch.ones(3)}))

    def cut(state, lost):
        return {key: value for key, value in state.items() if key != _HEAD + lost}

    path = file_of(change=lambda state: cut(state, "decoder.layers.7.norm2.bias"))
    with pytest.raises(CheckpointError, match=r"missing: decoder\.layers\.7\.self_norm\.bias"):
        convert.check(convert.read(path))
    path = file_of(
        change=lambda state: cut(state, "lang_encoder.lang_encoder.positional_embedding")
    )
    with pytest.raises(
        NamingError, match=r"must have text_encoder\.positions with 2 dim.*got none"
    ):
        convert.read(path)


@pytest.mark.parametrize(
    "copy",
    ["bbox_embed.3.layers.1.bias", "_bbox_embed.layers.0.weight", "decoder.norm.weight"],
)
def test_a_copy_that_is_none_is_refused(file_of, copy):
    def changed(state):
        assert _HEAD + copy in state
        return state | {_HEAD + copy: torch.zeros_like(state[_HEAD + copy])}

    with pytest.raises(NamingError, match=f"must equal the one that all .*{copy}"):
        convert.read(file_of(change=changed))


def test_a_converted_folder_is_loaded_and_converted_again(tmp_path, monkeypatch):
    torch.manual_seed(2)
    config = small()
    # the trunk of the released files is the only one that the layout has names for
    config = replace(config, backbone=replace(TRUNKS["swin_t"], dim=24, depths=(1, 1, 1, 1)))
    model = build_openseed(config)
    converted = convert.Converted(config=config, state=model.state_dict(), report=(), unused={})
    convert.write_ours(converted, tmp_path / "ours")
    loaded = OpenSeeD.from_pretrained(tmp_path / "ours")
    assert loaded.prediction == openseed_prediction()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    again = convert.read(tmp_path / "ours")
    assert again.config == config
    with pytest.raises(CheckpointError, match="no class for the kind openseed; keep our layout"):
        convert.write_hf(again, tmp_path / "hf")
    with pytest.raises(CheckpointError, match="must hold a MaskFormer; its kind is openseed"):
        convert.load_mask_former(tmp_path / "ours")


@pytest.mark.slow
def test_a_released_file_is_converted_loaded_and_computes(published, tmp_path):
    """Also with the trainer's prefix, and with copies that share memory as its files do."""
    entry = published["openseed_swint_lang_o365_decouple"]
    state = {key: torch.randn(shape) * 0.02 for key, shape in entry["shapes"].items()}
    state |= {key: state[source] for key, source in entry["aliases"].items()}
    file = tmp_path / "openseed.pt"
    torch.save({"model": {f"model.{key}": value for key, value in state.items()}}, file)
    assert convert.main([str(file), str(tmp_path / "out")]) == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    projection = state[_HEAD + "class_embed"]
    assert torch.equal(weights["decoder.heads.class_projection.weight"], projection.t())
    del weights
    model = OpenSeeD.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        names = torch.nn.functional.normalize(torch.randn(7, 512), dim=1)
        output = model.decode(model.encode_images(torch.rand(1, 3, 256, 192) * 255), names)
    assert output.layers[-1].boxes_cxcywh01.shape == (1, 400, 4)
    assert output.mask_logits(output.layers[-1]).shape == (1, 400, 64, 48)
