"""Accuracy of answers in VQA's results format."""

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import DataError
from pipelines.evaluation.files.reading import (
    check_covered,
    check_distinct,
    field_of,
    read_json,
    rows_of,
)
from pipelines.evaluation.files.result import FileScores
from pipelines.vqa import answer_accuracy

FORMAT = """vqa: VQA results against VQA annotations
  predictions.json    [{"question_id": 1, "answer": "2"}, ...]
  truth.json          {"annotations": [{"question_id": 1, "answer_type": "number",
                       "question_type": "how many", "answers": [{"answer": "2"}, ... ten]}, ...]}
  The official formula; spelling is evened out where the people disagree."""
PROTOCOL = "vqa-v2/leave-one-out-of-ten"


def score_vqa_files(*, predictions: Path, truth: Path) -> FileScores:
    """Accuracy over all questions, by type of answer and by type of question.

    Raises:
        DataError: a file is missing or damaged, or predictions and truth do not fit together.
    """
    questions = rows_of(truth, read_json(truth))
    true = {field_of(truth, i, row, "question_id"): row for i, row in enumerate(questions)}
    check_distinct(truth, [row["question_id"] for row in questions], "question_id")
    rows = rows_of(predictions, read_json(predictions), "results", "predictions")
    answers = {
        field_of(predictions, i, row, "question_id"): str(field_of(predictions, i, row, "answer"))
        for i, row in enumerate(rows)
    }
    check_distinct(predictions, [row["question_id"] for row in rows], "question_id")
    check_covered(predictions, answers, true, "question", truth=truth)
    if not true:
        raise DataError(f"{truth}: must hold at least one question; there is none.")
    accuracy = {key: _accuracy(truth, row, answers[key]) for key, row in true.items()}
    groups: dict[str, list[float]] = {}
    for key, row in true.items():
        for kind in ("answer_type", "question_type"):
            if kind in row:
                groups.setdefault(f"{kind}: {row[kind]}", []).append(accuracy[key])
    overall = float(np.mean(list(accuracy.values())))
    by_answer = {
        f"accuracy_{name.split(': ')[1].replace('/', '_')}": float(np.mean(values))
        for name, values in groups.items()
        if name.startswith("answer_type")
    }
    return FileScores(
        protocol=PROTOCOL,
        values={"accuracy": overall, **by_answer},
        official={"overall": round(100 * overall, 2)},
        per_class={name: {"accuracy": float(np.mean(v))} for name, v in sorted(groups.items())},
        per_item={str(key): value for key, value in accuracy.items()},
        truth_files=(truth,),
        prediction_files=(predictions,),
        details={"num_questions": len(true)},
    )


def _accuracy(path: Path, row: dict[str, Any], answer: str) -> float:
    name = row["question_id"]
    given = row.get("answers")
    if not isinstance(given, list) or not given:
        raise DataError(f"{path}: question {name} must have `answers` of people; it has none.")
    people = [str(each["answer"] if isinstance(each, dict) else each) for each in given]
    return answer_accuracy(answer, people)
