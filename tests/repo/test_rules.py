"""The rules of the house that a program can check."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("kernels", "xdecoder", "pipelines", "slurm")
ONLY_HERE = {
    "deepspeed": "pipelines/engine/deepspeed_backend.py",
    "wandb": "pipelines/tracking/wandb_tracker.py",
    "webdataset": "pipelines/data/",
    "submitit": "slurm/",
}
NOWHERE = ("detectron2", "mmcv", "fvcore", "transformers")
MAX_FUNCTION_LINES = 50
MAX_NESTING = 3
NESTING = (ast.For, ast.While, ast.If, ast.With, ast.Try)


def sources() -> list[Path]:
    return [path for name in PACKAGES for path in sorted((REPOSITORY / name).rglob("*.py"))]


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return [REPOSITORY / line for line in listing.stdout.splitlines()]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported_roots(path: Path) -> set[str]:
    roots = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.split(".")[0])
    return roots


def nesting(node: ast.AST) -> int:
    """Depth of blocks below a node; an `elif` is as deep as its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        step = int(isinstance(child, NESTING) and not is_elif)
        deepest = max(deepest, step + nesting(child))
    return deepest


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def test_files_stay_within_the_size_limit() -> None:
    limits = {path: 700 if relative(path).startswith("kernels/") else 400 for path in sources()}
    lengths = {path: len(path.read_text().splitlines()) for path in limits}
    long = {relative(path): lengths[path] for path in limits if lengths[path] > limits[path]}
    assert not long, f"split by idea: {long}"


def test_functions_stay_within_the_size_limit() -> None:
    long = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in sources()
        for node in functions(path)
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
        and not any("triton" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    assert not long, f"over {MAX_FUNCTION_LINES} lines: {long}"


def test_blocks_are_not_nested_deeper_than_the_limit() -> None:
    deep = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in sources()
        for node in functions(path)
        if nesting(node) > MAX_NESTING
        and not any("triton" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    assert not deep, f"nested deeper than {MAX_NESTING}: {deep}"


@pytest.mark.parametrize(("library", "place"), ONLY_HERE.items())
def test_library_is_imported_in_one_place(library: str, place: str) -> None:
    found = [relative(path) for path in sources() if library in imported_roots(path)]
    assert all(path.startswith(place) for path in found), f"{library} outside {place}: {found}"


@pytest.mark.parametrize("library", NOWHERE)
def test_library_is_not_a_dependency(library: str) -> None:
    found = [relative(path) for path in sources() if library in imported_roots(path)]
    assert not found, f"{library} must not be imported: {found}"


def test_triton_is_imported_by_triton_implementations_only() -> None:
    found = [relative(path) for path in sources() if "triton" in imported_roots(path)]
    assert all("triton" in Path(path).name for path in found), found


def test_layers_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_no_package_markers_below_tests() -> None:
    assert not list((REPOSITORY / "tests").rglob("__init__.py")), "they would shadow our packages"


def test_no_drawer_files() -> None:
    drawers = {"utils.py", "misc.py", "common.py", "helpers.py"}
    assert not [relative(path) for path in sources() if path.name in drawers]


def test_kernel_sources_do_not_include_the_slow_header() -> None:
    bad = [
        relative(path)
        for path in (REPOSITORY / "csrc").rglob("*")
        if path.is_file() and "torch/extension.h" in path.read_text()
    ]
    assert not [path for path in bad if not path.endswith(".md")]


def test_decoder_knows_no_tasks() -> None:
    text = (REPOSITORY / "xdecoder" / "decoder.py").read_text()
    words = re.findall(r"\b(panoptic|instance_seg|referring|retrieval|segmentation)\b", text)
    assert not words, f"the decoder must not name tasks: {words}"


def test_readme_commands_exist() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.M))
    blocks = "\n".join(re.findall(r"```(?:bash|sh)?\n(.*?)```", readme, flags=re.S))
    for target in re.findall(r"^make ([a-z]+)", blocks, flags=re.M):
        assert target in targets, f"README names `make {target}`"
    for verb in re.findall(r"python -m pipelines\.([a-z]+)", blocks):
        assert (REPOSITORY / "pipelines" / f"{verb}.py").is_file(), f"README names {verb}"


def test_tracked_files_name_no_path_of_one_machine() -> None:
    pattern = re.compile(r"/wor[k]/(main|shared)|/tmp/bash_job[s]")
    bad = [
        relative(path)
        for path in tracked_files()
        if path.suffix in {".py", ".md", ".sh", ".toml", ".cpp", ".cu", ".h", ".json"}
        and pattern.search(path.read_text())
    ]
    assert not bad, bad
