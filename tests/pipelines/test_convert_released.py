"""Files with exactly the names and shapes of the released X-Decoder, from file to report."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pipelines import convert
from pipelines.errors import CheckpointError
from pipelines.initial_weights import load_initial_weights
from xdecoder.build import build_model
from xdecoder.config import (
    BackboneConfig,
    DecoderConfig,
    ModelConfig,
    PixelDecoderConfig,
    TextConfig,
    released,
)
from xdecoder.convert.rules import CheckpointError as NamingError
from xdecoder.model import XDecoder
from xdecoder.prediction import released_prediction

_NUM_PARAMETERS = {
    "focal_t": 164_493_809,
    "focal_l": 341_551_353,
    "davit_d3": 221_978_113,
    "davit_d5": 497_190_401,
}
_QUERIES = ("query_feat.weight", "query_embed.weight")


@pytest.fixture
def shapes_of(shared_dir):
    """Names and shapes of a released model."""

    def read(name):
        folder = shared_dir / "specs" / "statedicts"
        if name == "focal_t":
            return json.loads((folder / "xdecoder_focalt_statedict.json").read_text())
        others = json.loads((folder / "xdecoder_other_statedicts.json").read_text())
        return others["state_dicts"][{"focal_l": "focall"}.get(name, name.replace("_", ""))]

    return read


@pytest.fixture
def file_of(shapes_of, tmp_path):
    """A `.pt` file of a released model; one number stands for all of a tensor's, so it is small."""

    def write(name, change=lambda state: state):
        number = torch.tensor(0.5)
        state = {key: number.expand(shape) for key, shape in shapes_of(name).items()}
        path = tmp_path / f"xdecoder_{name}_last.pt"
        torch.save(change(state), path)
        return path

    return write


@pytest.mark.parametrize("name", sorted(_NUM_PARAMETERS))
def test_a_released_file_fills_the_model_of_its_trunk(file_of, shapes_of, name):
    converted = convert.read(file_of(name))
    convert.check(converted)
    assert converted.config == released(name)
    assert sum(value.numel() for value in converted.state.values()) == _NUM_PARAMETERS[name]
    lines = convert.report_lines(converted)
    # two buffers are derived; five tensors are stored the other way round or without an axis
    assert (
        lines[-1] == f"total: 2 dropped, {len(shapes_of(name)) - 7} matched, 5 reshaped, 0 missing"
    )
    assert sorted(converted.unused) == [
        "criterion.empty_weight",
        "sem_seg_head.predictor.self_attn_mask",
    ]


def test_a_file_with_half_the_queries_makes_a_model_with_half_the_queries(file_of):
    def halved(state):
        prefix = "sem_seg_head.predictor."
        return state | {prefix + key: state[prefix + key][:101] for key in _QUERIES}

    converted = convert.read(file_of("focal_l", halved))
    convert.check(converted)
    assert converted.config.decoder.num_latents == 100
    assert converted.config.backbone.name == "focal_l"


def test_the_head_for_question_answering_is_dropped_with_a_reason(file_of):
    head = "sem_seg_head.predictor."
    extra = {
        head + "vqa_classifier.0.weight": torch.ones(1024, 512),
        head + "vqa_classifier.3.bias": torch.ones(3129),
        head + "query_feat_caping.weight": torch.ones(77, 512),
    }
    converted = convert.read(file_of("focal_t", lambda state: state | extra))
    convert.check(converted)
    lines = [line for line in convert.report_lines(converted) if "unused: " in line]
    assert len(lines) == 3
    assert all(line.startswith("dropped") for line in lines)


def test_an_unknown_name_and_an_unknown_trunk_are_refused(file_of):
    with pytest.raises(NamingError, match=r"backbone\.extra \[3\]: no rule"):
        convert.read(file_of("focal_t", lambda state: state | {"backbone.extra": torch.ones(3)}))
    key = "backbone.patch_embed.proj.weight"

    def widened(state):
        return state | {key: torch.ones(1).expand(100, 3, 7, 7)}

    with pytest.raises(NamingError, match=r"must have the trunk of focal_t, .*\[100, 3, 7, 7\]"):
        convert.read(file_of("focal_t", widened))


def test_a_file_that_lacks_a_weight_is_refused_by_name(file_of):
    def cut(state):
        return {k: v for k, v in state.items() if k != "sem_seg_head.predictor.decoder_norm.bias"}

    with pytest.raises(CheckpointError, match=r"missing: decoder\.heads\.norm\.bias"):
        convert.check(convert.read(file_of("focal_t", cut)))


def _trunks_only(state):
    """What training starts from: both trunks, and how their vectors meet."""
    kept = ("backbone", "sem_seg_head.predictor.lang_encoder.")
    return {key: value for key, value in state.items() if key.startswith(kept)}


def test_initial_weights_are_recognised_and_what_they_lack_is_listed(file_of):
    converted = convert.read(file_of("focal_t", _trunks_only))
    convert.check(converted)
    assert converted.is_initial
    lines = convert.report_lines(converted)
    missing = [line for line in lines if line.startswith("missing")]
    assert all(line.split()[1].startswith(("decoder.", "pixel_decoder.")) for line in missing)
    assert lines[-1].endswith(f"{len(missing)} missing")


def test_initial_weights_with_half_a_trunk_are_refused(file_of):
    def cut(state):
        lost = "backbone.layers.2.blocks.5.norm1.bias"
        return {k: v for k, v in _trunks_only(state).items() if k != lost}

    with pytest.raises(CheckpointError, match=r"missing: backbone\.stages\.2\.5\.norm1\.bias"):
        convert.check(convert.read(file_of("focal_t", cut)))


@pytest.fixture
def small_config():
    return ModelConfig(
        dim=32,
        backbone=BackboneConfig(name="test_efficientnet"),
        pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=4, ffn_dim=48),
        decoder=DecoderConfig(num_layers=2, num_heads=2, ffn_dim=40, num_latents=5),
        text=TextConfig(num_layers=2, num_heads=2, context_length=12, num_merges=300),
    )


@pytest.fixture
def small_folder(small_config, tmp_path):
    """A converted folder of a small model, whole or without what is behind the trunks."""

    def write(*, is_initial):
        state = build_model(small_config, has_initial_weights=False).state_dict()
        if is_initial:
            kept = ("backbone.", "text_encoder.", "logit_scale")
            state = {key: value for key, value in state.items() if key.startswith(kept)}
        converted = convert.Converted(
            config=small_config, state=state, report=(), unused={}, is_initial=is_initial
        )
        convert.write_ours(converted, tmp_path / "converted")
        return tmp_path / "converted", state

    return write


@pytest.mark.parametrize("is_initial", [True, False])
def test_training_starts_from_a_converted_folder(small_config, small_folder, is_initial):
    folder, state = small_folder(is_initial=is_initial)
    model = build_model(small_config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_initial_weights(model, folder)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    rest = after.keys() - state.keys()
    assert bool(rest) == is_initial
    assert all(torch.equal(after[key], before[key]) for key in rest)


def test_initial_weights_of_another_trunk_are_refused(small_config, small_folder):
    folder, _ = small_folder(is_initial=True)
    text = replace(small_config.text, num_layers=1)
    with pytest.raises(CheckpointError, match=r"must be of the model's own trunks; \d+ are not"):
        load_initial_weights(build_model(replace(small_config, text=text)), folder)


def test_a_start_is_no_model_to_predict_with(small_folder):
    folder, _ = small_folder(is_initial=True)
    with pytest.raises(NamingError, match="got 'xdecoder_initial'"):
        XDecoder.from_pretrained(folder)


@pytest.mark.slow
def test_a_released_file_is_converted_loaded_and_computes(shapes_of, tmp_path):
    state = {key: torch.randn(shape) * 0.02 for key, shape in shapes_of("focal_t").items()}
    torch.save(state, tmp_path / "xdecoder_focalt_last.pt")
    out = tmp_path / "out"
    assert convert.main([str(tmp_path / "xdecoder_focalt_last.pt"), str(out)]) == 0
    weights = load_file(out / "model.safetensors")
    projection = state["sem_seg_head.predictor.class_embed"]
    assert torch.equal(weights["decoder.heads.class_projection.weight"], projection.t())
    del weights
    model = XDecoder.from_pretrained(out)
    assert model.prediction == released_prediction()
    with torch.no_grad():
        features = model.encode_images(torch.rand(1, 3, 96, 64) * 255)
    assert features.mask_features.shape == (1, 512, 24, 16)
    assert torch.isfinite(features.mask_features).all()
