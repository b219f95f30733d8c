from pathlib import Path

import pytest
from PIL import Image

from pipelines.errors import DataError
from pipelines.image_files import Broken, find_images, output_names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "deep/a.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 3)).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path / "photos"


def test_a_folder_stands_for_all_pictures_below_it(folder: Path) -> None:
    found = [path.relative_to(folder).as_posix() for path in find_images([folder])]
    assert found == ["a.JPG", "b.png", "deep/a.png"]


def test_a_picture_named_twice_is_taken_once(folder: Path) -> None:
    assert len(find_images([folder / "b.png", folder, folder / "b.png"])) == 3


def test_a_named_file_is_taken_whatever_its_name(folder: Path) -> None:
    assert find_images([folder / "notes.txt"]) == [folder / "notes.txt"]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must have a picture in it; it has none"):
        find_images([tmp_path])


def test_pictures_of_one_name_do_not_overwrite_each_other(folder: Path) -> None:
    names = output_names(find_images([folder]))
    assert names[folder / "b.png"] == "b"
    assert len(set(names.values())) == 3
    assert all(name[0] in "ab" for name in names.values())


def test_broken_pictures_are_named_after_the_others(folder: Path) -> None:
    (folder / "c.png").write_bytes(b"nothing")
    broken = Broken()
    read = [path.name for path, _ in broken.read(find_images([folder]))]
    assert read == ["a.JPG", "b.png", "a.png"]
    with pytest.raises(DataError, match=r"1 of 4 pictures could not be used:\n.*c\.png: must be"):
        broken.complain(4)


def test_nothing_broken_is_no_complaint() -> None:
    Broken().complain(3)
