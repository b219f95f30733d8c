import torch

from kernels import _extension


def test_a_missing_library_is_a_reason_and_not_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(_extension, "_FOLDER", tmp_path)
    status = _extension.load_library("_cpu")
    assert not status.is_loaded
    assert "_cpu.so is not built. Build it with `pip install" in status.why_missing


def test_a_library_that_does_not_load_says_what_the_loader_said(tmp_path, monkeypatch):
    monkeypatch.setattr(_extension, "_FOLDER", tmp_path)
    (tmp_path / "_cpu.so").write_bytes(b"not a library")
    status = _extension.load_library("_cpu")
    assert f"_cpu.so does not load with torch {torch.__version__}" in status.why_missing


def test_the_cuda_library_is_not_tried_with_a_cpu_build_of_torch(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is a build without CUDA" in _extension._load_cuda_library().why_missing
