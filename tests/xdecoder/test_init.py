import importlib
import subprocess
import sys

import pytest

import xdecoder


@pytest.mark.parametrize("name", xdecoder.__all__)
def test_every_short_name_is_there(name: str) -> None:
    home = importlib.import_module(xdecoder._HOMES[name])
    assert getattr(xdecoder, name) is getattr(home, name)


def test_short_names_are_loaded_when_asked_for() -> None:
    program = "import sys, xdecoder, xdecoder.settings; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "False"


def test_another_name_is_refused_with_those_there_are() -> None:
    names = "Captioning, Detection, Editing"
    with pytest.raises(AttributeError, match=f"has no 'YDecoder'; it has {names}"):
        xdecoder.YDecoder
