"""VQA v2: questions about COCO's images of 2014, each with ten answers of people.

ROOT/v2_OpenEnded_mscoco_train2014_questions.json    likewise val2014, test2015
ROOT/v2_mscoco_train2014_annotations.json            likewise val2014; of test2015 nobody has them
ROOT/train2014/COCO_train2014_*.jpg                  or --images FOLDER

A question with its answers is one text of its image, see `xdecoder/tasks/answering.py`.
"""

from pathlib import Path
from typing import Any

from pipelines.data.coco import coco_identities, load_json
from pipelines.data.records import UNKNOWN_SIZE_HW, CocoRecord, CocoSplit
from pipelines.data.sources.base import NeededFile, Request, Source
from pipelines.errors import DataError
from xdecoder.tasks.answering import AskedQuestion

_URL = "https://visualqa.org/download.html"
_IMAGES = "http://images.cocodataset.org/zips/train2014.zip, val2014.zip"
_FOLDERS = {"train": "train2014", "val": "val2014"}


def questions_path(root: Path, split: str) -> Path:
    """Where the questions of a split are."""
    return root / f"v2_OpenEnded_mscoco_{_FOLDERS[split]}_questions.json"


def annotations_path(root: Path, split: str) -> Path:
    """Where the answers of a split are."""
    return root / f"v2_mscoco_{_FOLDERS[split]}_annotations.json"


def _read(request: Request) -> CocoSplit:
    paths = (
        questions_path(request.root, request.split),
        annotations_path(request.root, request.split),
    )
    try:
        answers = {
            int(entry["question_id"]): tuple(str(each["answer"]) for each in entry["answers"])
            for entry in load_json(paths[1])["annotations"]
        }
        questions = [_question(entry, answers) for entry in load_json(paths[0])["questions"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{paths[0]}: must list question_id, image_id and question, and {paths[1].name} "
            f"question_id and answers; got {error!r}."
        ) from error
    asked: dict[int, list[str]] = {}
    for image_id, question in questions:
        asked.setdefault(image_id, []).append(question.to_line())
    folder = _FOLDERS[request.split]
    images = request.images or request.root / folder
    return CocoSplit(
        name=request.split,
        records=tuple(
            _record(images, folder, image_id, asked[image_id]) for image_id in sorted(asked)
        ),
        annotation_files=paths,
    )


def _question(
    entry: dict[str, Any], answers: dict[int, tuple[str, ...]]
) -> tuple[int, AskedQuestion]:
    number = int(entry["question_id"])
    question = AskedQuestion(str(entry["question"]).strip(), number, answers[number])
    return int(entry["image_id"]), question


def _record(images: Path, folder: str, image_id: int, lines: list[str]) -> CocoRecord:
    name = f"COCO_{folder}_{image_id:012d}.jpg"
    return CocoRecord(
        image_id=image_id,
        image_path=images / name,
        size_hw=UNKNOWN_SIZE_HW,
        captions=tuple(lines),
        identities=coco_identities(name),
    )


SOURCES = (
    Source(
        name="vqav2",
        description="1.1 million questions about COCO's photographs, ten answers each",
        licence="annotations CC BY 4.0; each image under its own Flickr licence",
        url=_URL,
        files=(
            NeededFile(path="v2_OpenEnded_mscoco_{folder}_questions.json", url=_URL),
            NeededFile(path="v2_mscoco_{folder}_annotations.json", url=_URL),
            NeededFile(path="{folder}/*.jpg", url=_IMAGES, is_image=True),
        ),
        folders=_FOLDERS,
        read_split=_read,
        splits=("train", "val"),
        takes=("images",),
    ),
)
