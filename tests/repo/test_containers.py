"""The two recipes of an image: what they copy exists, and both build the same thing."""

import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
APPTAINER = (REPOSITORY / "slurm" / "xdecoder.def").read_text()
RECIPES = pytest.mark.parametrize("recipe", [DOCKERFILE, APPTAINER], ids=["docker", "apptainer"])
HOME = "/opt/xdecoder/"


def project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def copied(recipe: str) -> list[str]:
    """What the recipe takes from the repository."""
    if recipe is DOCKERFILE:
        lines = re.findall(r"^COPY (.+) (\S+)$", recipe, flags=re.M)
        for names, target in lines:
            assert target in ("./", names), f"COPY {names} {target}: another name in the image"
        return [name for names, _ in lines for name in names.split()]
    lines = re.findall(r"^    (\S+) (\S+)$", section("files"), flags=re.M)
    for name, target in lines:
        assert target == HOME + name, f"%files {name} {target}: another name in the image"
    return [name for name, _ in lines]


def section(name: str) -> str:
    """The lines of a section of the Apptainer recipe."""
    return APPTAINER.split(f"\n%{name}\n")[1].split("\n%")[0]


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def floor(requirements: list[str], package: str) -> tuple[int, ...]:
    """The oldest version of a package that the project takes."""
    (found,) = [text for text in requirements if re.fullmatch(rf"{package}>=[\d.]+", text)]
    return version(found.removeprefix(f"{package}>="))


def commands(recipe: str) -> str:
    """Its shell commands, each on one line of single spaces."""
    shell = recipe if recipe is DOCKERFILE else section("post")
    return re.sub(r"\s*\\?\n\s*", " ", shell)


@RECIPES
def test_what_is_copied_exists_and_is_all_that_an_installation_needs(recipe: str) -> None:
    names = copied(recipe)
    assert [name for name in names if not (REPOSITORY / name).exists()] == []
    about = project()["project"]
    packages = project()["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {"pyproject.toml", "setup.py", "csrc", about["readme"], *about["license-files"]}
    assert set(names) == needed | {package.rstrip("*") for package in packages}


@RECIPES
def test_base_image_has_a_torch_that_the_project_takes(recipe: str) -> None:
    (torch,) = re.findall(r"BASE=pytorch/pytorch:([\d.]+)-cuda[\d.]+-cudnn\d+-devel\b", recipe)
    floors = [
        floor(project()["project"]["dependencies"], "torch"),
        floor(project()["build-system"]["requires"], "torch"),
    ]
    assert version(torch) >= max(floors)


@RECIPES
def test_what_the_build_needs_is_installed_before_it(recipe: str) -> None:
    build, editable = commands(recipe).split("--no-build-isolation")
    for requirement in project()["build-system"]["requires"]:
        name = re.split(r"[><=]", requirement)[0]
        # torch is in the base image
        assert name == "torch" or re.search(rf"pip install.*\b{name}\b", build), name
    (extras,) = re.findall(r'^ --editable "\.\[([\w,]+)\]"', editable)
    assert set(extras.split(",")) <= project()["project"]["optional-dependencies"].keys()
    setuptools = re.search(r'"setuptools>=([\d.]+)"', build)[1]
    assert version(setuptools) >= floor(project()["build-system"]["requires"], "setuptools")


def test_both_recipes_build_the_same() -> None:
    patterns = (
        r"pytorch/pytorch:\S+",
        r"apt-get install (.*?)(?: &&| rm)",
        r"pip install --no-cache-dir (\"setuptools.*?)(?: &&| pip)",
        r"--editable (\S+)",
        r"ARCHITECTURES=\"?([\d;]+)",
        r"HF_HUB_OFFLINE=\d WANDB_MODE=\w+ PYTHONUNBUFFERED=\d",
    )
    for pattern in patterns:
        docker, apptainer = (
            re.findall(pattern, commands(recipe) + "\n" + recipe)
            for recipe in (DOCKERFILE, APPTAINER)
        )
        assert docker
        assert set(docker) == set(apptainer), pattern
    assert copied(DOCKERFILE) == copied(APPTAINER)


def test_no_built_file_of_this_machine_enters_an_image() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    assert {".git", ".venv", "build", "**/__pycache__", "**/*.so"} <= set(ignored)
