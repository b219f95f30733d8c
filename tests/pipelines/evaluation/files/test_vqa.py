"""Files of answers to questions: their types, and which mistakes are named."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluation.files import score_files
from tests.testing.answer_files import refused, written


def question(ident: int, answers: list[str], kind: str) -> dict[str, Any]:
    people = [{"answer": answer, "answer_id": n} for n, answer in enumerate(answers)]
    return {"question_id": ident, "answer_type": kind, "question_type": "is", "answers": people}


def test_questions_are_scored_by_type_too(tmp_path: Path) -> None:
    rows = [question(1, ["yes"] * 10, "yes/no"), question(2, ["2"] * 2 + ["3"] * 8, "number")]
    truth = written(tmp_path / "truth.json", {"annotations": rows})
    answers = [{"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": "two"}]
    report = score_files("vqa", predictions=written(tmp_path / "found.json", answers), truth=truth)
    # two of ten said 2: for each of those two one other agrees, for each of the eight two do
    number = (2 * 1 / 3 + 8 * 2 / 3) / 10
    assert report["accuracy_number"] == pytest.approx(number)
    assert report["accuracy"] == pytest.approx((1 + number) / 2)
    assert report["accuracy_yes_no"] == 1


@pytest.mark.parametrize(
    ("answers", "rows", "text"),
    [
        (
            [],
            [question(1, ["a"], "other")],
            "a prediction for every question of truth.json; 1 of 1",
        ),
        ([{"question_id": 1, "answer": "a"}], [], "every question must occur in"),
        (
            [{"question_id": 1, "answer": "a"}],
            [{"question_id": 1}],
            "must have `answers` of people",
        ),
        ([], [], "must hold at least one question"),
    ],
)
def test_mistakes_about_questions_are_named(
    tmp_path: Path, answers: object, rows: object, text: str
) -> None:
    truth = written(tmp_path / "truth.json", {"annotations": rows})
    refused("vqa", written(tmp_path / "found.json", answers), truth, text)
