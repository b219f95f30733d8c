"""What a stage of an evaluation is: questions to a model, and figures from its answers.

    images --answers()--> one plain answer an image --take(), in the order of the split--> figures

Answers are JSON: ranks exchange them and resuming reads them back, so that figures depend neither
on how the images were shared out nor on interruptions.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from pipelines.data.coco import CocoRecord
from pipelines.evaluation.predictor import ImageArray, Predictor

Values = dict[str, float]
Answer = dict[str, Any]


class Stage(Protocol):
    """Metrics of one task."""

    name: str

    def wants(self, record: CocoRecord) -> bool:
        """Whether the image has what the metrics need."""
        ...

    def answers(
        self,
        predictor: Predictor,
        images: Sequence[ImageArray],
        records: Sequence[CocoRecord],
    ) -> list[Answer]:
        """What the model says about each image, compared with the truth as far as one image can be.

        Changes nothing in the stage.
        """
        ...

    def take(self, record: CocoRecord, answer: Answer) -> None:
        """Count one answer; called once for each image, in the order of the split."""
        ...

    def result(self) -> tuple[Values, dict[str, Any]]:
        """Percentages by key, and details such as counts."""
        ...

    def by_image(self) -> dict[str, dict[int, float]]:
        """Percentages of single images, by name and image id, to find good and bad ones."""
        ...

    def write_predictions(self, folder: Path) -> None:
        """Write what the model said in the formats that official tools and servers take."""
        ...


def packed(vectors: Float[np.ndarray, "n c"]) -> dict[str, Any]:
    """Vectors as JSON can hold them, to the last bit."""
    data = np.ascontiguousarray(vectors, dtype="<f4")
    return {"shape": list(data.shape), "float32": base64.b64encode(data.tobytes()).decode("ascii")}


def unpacked(value: dict[str, Any]) -> Float[np.ndarray, "n c"]:
    """The vectors that `packed` wrote."""
    data = np.frombuffer(base64.b64decode(value["float32"]), dtype="<f4")
    return data.reshape(value["shape"])  # [n, c]
