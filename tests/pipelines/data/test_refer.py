import os
import pickle
from pathlib import Path

import pytest

from pipelines.data.refer import read_references
from pipelines.errors import DataError

ENTRY = {
    "ref_id": 4,
    "ann_id": 17,
    "image_id": 9,
    "split": "testA",
    "sentences": [{"sent_id": 1, "sent": "left dog", "raw": "Left dog!"}],
}


def _write(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_references_are_read_whatever_the_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    (reference,) = read_references(_write(tmp_path / "refs(unc).p", [ENTRY], protocol))
    assert (reference.ref_id, reference.ann_id, reference.image_id) == (4, 17, 9)
    assert reference.split == "testA"
    assert reference.sentences[0].text == "left dog"
    assert reference.sentences[0].raw == "Left dog!"
    assert reference.sentences[0].kind == ""


def test_a_pickle_written_by_python_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "refs(google).p"
    path.write_bytes(
        b"\x80\x02]q\x00}q\x01(U\x06ref_idK\x04U\x06ann_idK\x11U\x08image_idK\tU\x05splitU\x03val"
        b"U\tsentences]q\x02}q\x03(U\x07sent_idK\x01U\x04sentU\x07caf\xc3\xa9 xuaua."
    )
    (reference,) = read_references(path)
    assert reference.sentences[0].text == "café x"


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path = _write(tmp_path / "refs(evil).p", [_Bomb(tmp_path / "made_by_pickle")])
    with pytest.raises(DataError, match=r"may hold only lists, dicts.*got \w+\.mkdir"):
        read_references(path)
    assert not (tmp_path / "made_by_pickle").exists()


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__"])
def test_builtins_that_run_code_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "refs(evil).p"
    path.write_bytes(f"cbuiltins\n{name}\n(S'1'\ntR.".encode())
    with pytest.raises(DataError, match=f"builtins.{name}"):
        read_references(path)


def test_a_damaged_pickle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([ENTRY])[:-20])
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: not a readable pickle"):
        read_references(path)


def test_a_pickle_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold a list of refs; got dict"):
        read_references(_write(tmp_path / "refs(unc).p", ENTRY))


@pytest.mark.parametrize("field", ["ref_id", "ann_id", "image_id", "split", "sentences"])
def test_a_ref_without_a_field_is_named(tmp_path: Path, field: str) -> None:
    entry = {key: value for key, value in ENTRY.items() if key != field}
    with pytest.raises(DataError, match=f"ref 1 must have ref_id.*{field}"):
        read_references(_write(tmp_path / "refs(unc).p", [ENTRY, entry]))
