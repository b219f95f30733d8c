"""Which of many pictures a text means, from an index of their vectors: drawn and as JSON."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from pipelines.answers import Answer, phrase_facts
from pipelines.drawing import PAPER, contact_sheet, draw_region, side_by_side, with_strip
from pipelines.evaluation.images import read_image
from xdecoder.model import XDecoder
from xdecoder.tasks.referring import Referring
from xdecoder.tasks.region_retrieval import image_probabilities
from xdecoder.tasks.retrieval import decoder_side, text_embeddings

_SHEET_COLUMNS = 4
_CELL_WH = (360, 270)


def retrieval(
    model: XDecoder,
    paths: Sequence[Path],
    vectors: Float[Tensor, "n c2"],
    texts: Sequence[str],
    *,
    top: int,
) -> Answer:
    """The pictures that fit each text best, and the texts in order for each picture."""
    similarity = text_embeddings(model, texts).cpu() @ vectors.T  # [T, N]
    rankings, pictures = [], {}
    for place, (text, row) in enumerate(zip(texts, similarity, strict=True)):
        best = row.argsort(descending=True, stable=True)[:top].tolist()
        found = [{"image": str(paths[i]), "similarity": float(row[i])} for i in best]
        rankings.append({"text": text, "images": found})
        titles = [f"{each['similarity']:.2f} {Path(str(each['image'])).name}" for each in found]
        sheet = _sheet([paths[i] for i in best], titles)
        pictures[f"_{place}_{_slug(text)}"] = with_strip(sheet, text, kicker="best pictures first")
    per_image = [
        {
            "image": str(path),
            "texts": [
                {"text": texts[i], "similarity": float(column[i])}
                for i in column.argsort(descending=True, stable=True).tolist()
            ],
        }
        for path, column in zip(paths, similarity.T, strict=True)
    ]
    return Answer(pictures=pictures, facts={"texts": rankings, "images": per_image})


def region_retrieval(
    model: XDecoder,
    paths: Sequence[Path],
    vectors: Float[Tensor, "n c2"],
    texts: Sequence[str],
    *,
    top: int,
) -> Answer:
    """The picture that each phrase means, and the region in it."""
    probabilities = image_probabilities(model, decoder_side(vectors), texts).cpu()
    facts: list[dict[str, Any]] = []
    pictures = {}
    for place, (phrase, row) in enumerate(zip(texts, probabilities, strict=True)):
        order = row.argsort(descending=True, stable=True)[:top].tolist()
        best = paths[order[0]]
        image = read_image(best)
        region = model.predict(image, Referring(phrases=(phrase,)))
        facts.append(
            {
                "images": [{"image": str(paths[i]), "probability": float(row[i])} for i in order],
                **phrase_facts(region)[0],
            }
        )
        pictures[f"_{place}_{_slug(phrase)}"] = with_strip(
            draw_region(image, region.masks[0].cpu().numpy()),
            f"{phrase}: {best.name}, {float(row[order[0]]):.0%}",
            kicker=f"best of {len(paths)} pictures",
        )
    return Answer(pictures=pictures, facts={"phrases": facts})


SEARCHES = {"retrieval": retrieval, "region_retrieval": region_retrieval}


def _sheet(paths: Sequence[Path], titles: Sequence[str]) -> Image.Image:
    cells = []
    for path, title in zip(paths, titles, strict=True):
        picture = ImageOps.pad(Image.fromarray(read_image(path)), _CELL_WH, color=PAPER)
        cells.append(side_by_side([picture], [title]))
    return contact_sheet(cells, num_columns=min(_SHEET_COLUMNS, len(cells)))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]
