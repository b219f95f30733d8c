"""Exported graphs against the model that they were made of."""

from dataclasses import replace

import pytest
import torch

from pipelines.convert import Converted, write_ours
from pipelines.errors import CheckpointError, ConfigError
from pipelines.export import BoxGraph, InferenceGraph, export, graph_of, main
from xdecoder.config import PixelDecoderConfig
from xdecoder.convert.rules import CheckpointError as NamingError
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import MaskFormerConfig, QueryDecoderConfig, SwinConfig
from xdecoder.openseed.build import build_openseed
from xdecoder.openseed.config import small
from xdecoder.openseed.model import OpenSeeD


@pytest.fixture(scope="module")
def config():
    return MaskFormerConfig(
        num_classes=5,
        backbone=SwinConfig(
            dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window=4, drop_path=0.0
        ),
        pixel_decoder=PixelDecoderConfig(num_layers=1, num_heads=4, ffn_dim=48),
        decoder=QueryDecoderConfig(dim=32, num_layers=3, num_heads=4, ffn_dim=40, num_queries=6),
        pixel_dim=32,
        mask_dim=32,
    )


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(3)
    model = build_mask_former(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def images():
    return 255 * torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))


def test_the_onnx_graph_gives_the_numbers_of_the_model(model, images, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    export(InferenceGraph(model), images, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
    found = session.run(["class_logits", "mask_logits"], {"images": images.numpy()})
    with torch.no_grad():
        expected = InferenceGraph(model)(images)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(actual), wanted, atol=1e-4, rtol=0)


def test_the_torch_graph_of_a_folder_gives_the_numbers_of_the_model(
    config, model, images, tmp_path
):
    converted = Converted(config=config, state=model.state_dict(), report=(), unused={})
    write_ours(converted, tmp_path / "folder")
    height, width = map(str, images.shape[2:])
    words = [str(tmp_path / "folder"), str(tmp_path / "model.pt2"), "--size", height, width]
    assert main(words) == 0
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for actual, wanted in zip(program(images), InferenceGraph(model)(images), strict=True):
            torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=0)


def test_another_file_name_is_refused(model, images, tmp_path):
    with pytest.raises(CheckpointError, match=r"must end in \.onnx or \.pt2"):
        export(InferenceGraph(model), images, tmp_path / "model.engine")


def test_a_folder_without_a_model_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "model.pt2")]) == 2
    assert "it is none of them" in capsys.readouterr().err


@pytest.fixture(scope="module")
def openseed_folder(tmp_path_factory):
    """A converted folder of an OpenSeeD that moves its boxes."""
    torch.manual_seed(6)
    config = small()
    backbone = replace(config.backbone, name="test_efficientnet", weights="random")
    config = replace(
        config,
        dim=32,
        backbone=backbone,
        pixel_decoder=replace(config.pixel_decoder, num_layers=1),
        decoder=replace(config.decoder, num_layers=1),
        text=replace(config.text, num_layers=1),
    )
    model = build_openseed(config)
    with torch.no_grad():
        model.decoder.heads.box_mlp.layers[-1].weight.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("openseed") / "folder"
    state = model.state_dict()
    write_ours(Converted(config=config, state=state, report=(), unused={}), folder)
    return folder


def test_the_torch_graph_of_an_openseed_has_the_names_in_it(openseed_folder, images, tmp_path):
    height, width = map(str, images.shape[2:])
    words = [str(openseed_folder), str(tmp_path / "model.pt2"), "--size", height, width]
    assert main([*words, "--vocabulary", "cat,dog,blue sky"]) == 0
    program = torch.export.load(tmp_path / "model.pt2").module()
    model = OpenSeeD.from_pretrained(openseed_folder)
    with torch.no_grad():
        expected = BoxGraph(model, ("cat", "dog", "blue sky"))(images)
        found = program(images)
        for actual, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=0)
    # 30 queries from the image, 8 learned ones
    assert [list(each.shape) for each in found] == [[1, 38, 3], [1, 38, 4], [1, 38, 16, 24]]


def test_an_openseed_without_names_is_refused(openseed_folder, tmp_path, capsys):
    assert main([str(openseed_folder), str(tmp_path / "model.pt2")]) == 2
    assert "which names it was trained with, so --vocabulary must" in capsys.readouterr().err


def test_names_for_a_list_of_classes_and_other_models_are_refused(model, tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"--vocabulary is for an OpenSeeD; .* got cat"):
        graph_of(model, ("cat",), tmp_path)
    with pytest.raises(NamingError, match="it holds a XDecoder"):
        graph_of(tiny_model, None, tmp_path)
