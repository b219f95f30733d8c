import torch

from kernels import __main__ as table
from kernels._extension import CPU_LIBRARY


def test_the_table_says_yes_or_why_not():
    for line in table.capabilities():
        assert line.is_available == (line.reason == "")


def test_every_operator_runs_on_this_machine_in_every_dtype():
    available = {(one.op, one.dtype) for one in table.capabilities() if one.is_available}
    operators = {one.op for one in table.capabilities()}
    dtypes = {"float32", "float64", "bfloat16", "float16"}
    assert available == {(op, dtype) for op in operators for dtype in dtypes}


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reasons = {one.reason for one in table.capabilities() if one.device == "cuda"}
    assert "no GPU is visible." in reasons


def test_the_instruction_set_is_named():
    known = {"avx512", "avx2", "baseline"} if CPU_LIBRARY.is_loaded else {CPU_LIBRARY.why_missing}
    assert table.instruction_set() in known


def test_the_table_is_printed(capsys):
    table.main()
    assert "deformable attention  cpu     reference  float64   yes" in capsys.readouterr().out
