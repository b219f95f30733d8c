"""Exported graphs against the model that they were made of."""

import pytest
import torch

from pipelines.convert import Converted, write_ours
from pipelines.errors import CheckpointError
from pipelines.export import InferenceGraph, export, main
from xdecoder.config import PixelDecoderConfig
from xdecoder.mask_former.build import build_mask_former
from xdecoder.mask_former.config import MaskFormerConfig, QueryDecoderConfig, SwinConfig


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
    export(model, images, tmp_path / "model.onnx")
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
        export(model, images, tmp_path / "model.engine")


def test_a_folder_without_a_model_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "model.pt2")]) == 2
    assert "it is none of them" in capsys.readouterr().err
