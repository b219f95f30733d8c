"""Everything that docs/tasks.md shows can be typed in."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines import inpainting
from pipelines.predict import parser

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S)
    for line in block.splitlines()
]
PREAMBLE, *PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str) -> None:
    prefix, words = "python -m pipelines.predict ", shlex.split(command)
    assert command.startswith(prefix)
    options = parser().parse_args(words[3:])
    assert options.task in command


def test_every_task_has_a_command() -> None:
    tasks = next(action.choices for action in parser()._actions if action.dest == "task")
    assert tasks is not None
    assert {parser().parse_args(shlex.split(each)[3:]).task for each in COMMANDS} == set(tasks)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_runs(
    program: str,
    tiny_run: Path,
    boxes_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(tiny_run)
    (tmp_path / "runs" / "boxes").symlink_to(boxes_run)
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/other.png"):
        Image.effect_noise((90, 50), 60).convert("RGB").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inpainting, "load_inpainting", lambda folder: lambda image, *rest: image)
    names: dict[str, Any] = {}
    exec(PREAMBLE + program, names)
    assert {"answer", "edited", "model"} & names.keys()
