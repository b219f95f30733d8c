"""Questions about images over a split, with the questions of other images as control."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.coco import CocoRecord
from pipelines.evaluation.controls import shuffled_partners
from pipelines.evaluation.predictor import ImageArray, Predictor
from pipelines.evaluation.stage import Answer, Values
from pipelines.vqa import answer_accuracy
from xdecoder.tasks.answering import AskedQuestion


class AnsweringStage:
    """Accuracy of answers; the control counts them for the questions of another image."""

    name = "answering"

    def __init__(self, records: Sequence[CocoRecord], *, with_controls: bool = True) -> None:
        self._asked = {
            record.image_id: [AskedQuestion.from_line(line) for line in record.captions or ()]
            for record in records
        }
        partners = shuffled_partners(list(self._asked))
        ids = list(self._asked)
        self._stand_in = {ids[i]: ids[partner] for i, partner in enumerate(partners)}
        self._with_controls = with_controls
        self.given: dict[int, str] = {}
        self._accuracy_of_image: dict[int, float] = {}
        self._points: list[float] = []
        self._shuffled_points: list[float] = []

    def wants(self, record: CocoRecord) -> bool:
        """Whether the image has a question."""
        return bool(self._asked[record.image_id])

    def answers(
        self,
        predictor: Predictor,
        images: Sequence[ImageArray],
        records: Sequence[CocoRecord],
    ) -> list[Answer]:
        """The answers to each image's own questions."""
        return [
            {"answers": predictor.answer(image, [each.text for each in self._asked[r.image_id]])}
            for image, r in zip(images, records, strict=True)
        ]

    def take(self, record: CocoRecord, answer: Answer) -> None:
        """Count one image."""
        asked = self._asked[record.image_id]
        others = self._asked[self._stand_in[record.image_id]]
        points = []
        for place, (question, given) in enumerate(zip(asked, answer["answers"], strict=True)):
            self.given[question.id] = given
            points.append(answer_accuracy(given, question.answers))
            if self._with_controls and others:
                people = others[place % len(others)].answers
                self._shuffled_points.append(answer_accuracy(given, people))
        self._points += points
        self._accuracy_of_image[record.image_id] = 100 * float(np.mean(points))

    def result(self) -> tuple[Values, dict[str, Any]]:
        """Accuracy in percent by key, and counts."""
        counts = {"num_questions_answering": len(self._points)}
        if not self._points:
            return {}, counts
        values = {"vqa_accuracy": 100 * float(np.mean(self._points))}
        if self._shuffled_points:
            values["vqa_accuracy_shuffled"] = 100 * float(np.mean(self._shuffled_points))
        return values, counts

    def by_image(self) -> dict[str, dict[int, float]]:
        """Percentages of single images, by name and image id."""
        return {"vqa_accuracy": self._accuracy_of_image}

    def write_predictions(self, folder: Path) -> None:
        """VQA's results."""
        rows = [{"question_id": key, "answer": text} for key, text in self.given.items()]
        (folder / "answers.json").write_text(json.dumps(rows))
